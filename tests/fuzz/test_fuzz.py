"""A few hundred mutated inputs of every format; `python -m tests.fuzz` reads ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import readers, worker
from tests.fuzz.campaign import Campaign
from tests.long_tier import IS_LONG

PER_KIND = 800 if IS_LONG else 20


@pytest.mark.parametrize("kind", readers.KINDS)
def test_mutated_inputs_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    outcomes: set[str] = set()
    for seed in range(10 * PER_KIND):
        if seed >= PER_KIND and len(outcomes) == 2:
            break
        files = worker.write_input(kind, seed, tmp_path / "input")
        outcome, message = worker.read_input(kind, tmp_path / "input")
        assert outcome != "failed", f"python -m tests.fuzz --kind {kind} --seed {seed} --count 1\n{message}"
        assert files
        outcomes.add(outcome)
    assert outcomes == {"read", "refused"}, "the mutations are too weak, or too strong"


def test_equal_seeds_give_equal_inputs(tmp_path: Path) -> None:
    for kind in readers.KINDS:
        first, second = (worker.write_input(kind, 5, tmp_path / "input") for _ in range(2))
        assert first.keys() == second.keys()
        if kind != "image":  # encoders of images may differ between threads
            assert first == second, kind


@pytest.mark.parametrize("problem", ["traceback", "hang", "death", "memory"])
def test_a_failing_input_is_found_named_and_kept(tmp_path: Path, problem: str) -> None:
    with Campaign(["recipe"], tmp_path, max_seconds=1.0, plant=problem) as campaign:
        done = list(campaign.run(7, 2))
    assert done == [1, 2]
    assert [(one.kind, one.seed) for one in campaign.failures] == [("recipe", 7), ("recipe", 8)]
    words = {
        "traceback": "ZeroDivisionError",
        "hang": "no answer",
        "death": "code 9",
        "memory": "MemoryError",
    }
    assert words[problem] in campaign.failures[0].problem
    assert (tmp_path / "recipe-7" / "recipe.yaml").is_file()
    assert (tmp_path / "recipe-7" / "problem.txt").read_text(encoding="utf-8")
    assert "2 failed" in campaign.summary(1.0)
