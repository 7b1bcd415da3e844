"""Win rates over the base model, by metric and role, with the interval of shares."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.core.shares import share_interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores
from lorakit.evaluation.win_rates import win_metrics, win_rates

PROMPTS = [Prompt(f"s{n:02d}", "a sks dog", "a dog", seeds=(0, 1)) for n in range(24)]
PROMPTS += [Prompt(f"u{n}", "a field", "a field", seeds=(0, 1), kind="unrelated") for n in range(6)]
KEYS = [SampleKey(prompt.id, seed) for prompt in PROMPTS for seed in prompt.seeds]


def evaluation(gain: float, metric: str = "pickscore", **settings: object) -> Evaluation:
    """The adapter's scores exceed the base model's by `gain` on average, on prompts of the subject only."""
    rng = np.random.default_rng(0)
    base = {key: float(rng.normal(20, 1)) for key in KEYS}
    gains = {key: (gain if key.prompt_id.startswith("s") else 0.0) + float(rng.normal()) for key in KEYS}
    own = {key: base[key] + gains[key] for key in KEYS}
    variants = [VariantScores(BASE, scores={metric: base}), VariantScores("step-1", 1, scores={metric: own})]
    return Evaluation("e", PROMPTS, variants, triggers=("sks",), settings=dict(settings))


@pytest.mark.parametrize(("gain", "is_better"), [(2.0, True), (0.0, None), (-2.0, False)])
def test_wins_are_counted_in_pairs_of_the_same_prompt_and_seed(gain, is_better):
    table = evaluation(gain)
    subject, unrelated = win_rates(table, table.variants[1])
    assert (subject.role, subject.num_pairs) == ("subject", 48)
    assert (unrelated.role, unrelated.num_pairs) == ("unrelated", 12)
    base, own = (v.scores["pickscore"] for v in table.variants)
    keys = [key for key in KEYS if key.prompt_id.startswith("s")]
    wins = [float(own[key] > base[key]) for key in keys]
    assert subject.share == share_interval(wins, [key.prompt_id for key in keys])
    assert subject.is_better is is_better
    assert unrelated.is_better is None


def test_equal_scores_are_half_a_win():
    table = evaluation(0.0)
    table.variants[1].scores["pickscore"] = dict(table.variants[0].scores["pickscore"])
    assert [rate.share.mean for rate in win_rates(table, table.variants[1])] == [0.5, 0.5]


def test_only_preference_models_are_counted_unless_a_metric_is_named():
    table = evaluation(1.0, "vqascore")
    assert win_metrics(table) == []
    assert win_rates(table, table.variants[1]) == []
    assert win_metrics(evaluation(1.0, "vqascore", win_rates=["vqascore", "clip_t"])) == ["vqascore"]


def test_without_the_base_models_images_there_is_nothing_to_win_against():
    table = evaluation(1.0)
    table.variants = table.variants[1:]
    assert win_rates(table, table.variants[0]) == []
