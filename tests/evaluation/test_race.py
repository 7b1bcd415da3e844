"""A race stops variants that cannot be the best any more, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.evaluation import select
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.race import find_losers, first_prompts
from tests.evaluation.simulated import Truth, simulate


@pytest.fixture
def raise_alarms(monkeypatch):
    """Return a function that sets the alarms of variants by name; all others have none."""

    def set_alarms(alarms: dict[str, list[Alarm]]) -> None:
        monkeypatch.setattr(
            select.alarms, "find_alarms", lambda evaluation, variant, limit: alarms.get(variant.name, [])
        )

    return set_alarms


def test_the_best_is_hardly_ever_stopped_and_many_others_are(raise_alarms):
    raise_alarms({})
    truths = [Truth(100 * n, 0.08 * n, 1.0) for n in range(1, 10)]
    stopped, best_stopped = [], 0
    for seed in range(20):
        losers = find_losers(simulate(truths, seed=seed, subject=8, unrelated=0))
        stopped.append(len(losers))
        best_stopped += "step-900" in losers
    assert best_stopped <= 1
    assert np.mean(stopped) >= 4


def test_of_equal_variants_most_go_on(raise_alarms):
    """Some are stopped, since what is at most a little better is not worth its images."""
    raise_alarms({})
    truths = [Truth(100 * n, 0.6, 0.9) for n in range(1, 7)]
    losers = [find_losers(simulate(truths, seed=seed, subject=8, unrelated=0)) for seed in range(10)]
    assert np.mean([len(names) for names in losers]) <= 2


def test_alarms_stop_what_is_not_the_best_and_warnings_stop_nothing(raise_alarms):
    alarm, warning = Alarm("copied_images", "a copy"), Alarm("copied_images", "perhaps", level="warning")
    truths = [Truth(100, 0.55, 1.0), Truth(200, 0.6, 1.0), Truth(300, 0.9, 1.0)]
    evaluation = simulate(truths, subject=8, noise=0.3)
    for alarms in ([alarm], [warning]):  # the best stays in sight, and it stops no other
        raise_alarms({"step-300": alarms})
        assert not {"step-200", "step-300"} & set(find_losers(evaluation))
    raise_alarms({})
    assert find_losers(evaluation) == ["step-100", "step-200"]
    raise_alarms({"step-100": [alarm]})
    assert "step-100" in find_losers(evaluation)
    raise_alarms({f"step-{step}": [alarm] for step in (100, 200, 300)})
    assert find_losers(evaluation) == []


def test_without_fidelity_or_with_one_prompt_none_is_stopped(raise_alarms):
    raise_alarms({})
    truths = [Truth(100, 0.2, 1.0), Truth(200, 0.9, 1.0)]
    assert find_losers(simulate(truths, subject=1, noise=0.1)) == []
    without_references = simulate(truths, subject=8)
    without_references.references = None
    assert find_losers(without_references) == []


def test_the_first_prompts_are_mostly_about_the_subject():
    evaluation = simulate([], subject=12, unrelated=12)
    first = first_prompts(evaluation.prompts, evaluation.triggers, 8)
    assert len(first) == 8
    assert sum(prompt.role(evaluation.triggers) == "subject" for prompt in first) == 6
