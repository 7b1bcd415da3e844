"""What an evaluation could not measure is listed with its reason and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lorakit.evaluation.references import ReferenceTable
from lorakit.evaluation.run_facts import ConceptFacts, RunFacts
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.unknowns import find_unknowns
from tests.evaluation.simulated import Truth, simulate


def sound() -> Evaluation:
    """An evaluation in which everything essential was measured."""
    return simulate([Truth(100, 0.7, 1.0)])


def _without_base(evaluation: Evaluation) -> None:
    evaluation.variants = evaluation.variants[1:]


def _without_references(evaluation: Evaluation) -> None:
    evaluation.references = evaluation.copy_scale = None


def _two_references(evaluation: Evaluation) -> None:
    table = evaluation.references
    evaluation.references = ReferenceTable(table.units[:2], table.similarity[:2, :2])
    evaluation.copy_scale = None
    for variant in evaluation.variants:
        variant.reference_similarity = {k: v[:2] for k, v in variant.reference_similarity.items()}


def _trigger_in_no_caption(evaluation: Evaluation) -> None:
    evaluation.facts = RunFacts(num_images=8, concepts=(ConceptFacts("data", "sks", 8, 8, 0, 8),))


def _keep_prompts(evaluation: Evaluation, subject: int) -> None:
    own = evaluation.prompts_of_role("subject")[:subject]
    evaluation.prompts = own + evaluation.prompts_of_role("unrelated")


def _one_seed(evaluation: Evaluation) -> None:
    evaluation.prompts = [replace(prompt, seeds=(0,)) for prompt in evaluation.prompts]


def _references_like_anything(evaluation: Evaluation) -> None:
    for variant in evaluation.variants:
        variant.reference_similarity = {
            key: [0.75] * len(row) for key, row in variant.reference_similarity.items()
        }


def _prompts_like_any_other(evaluation: Evaluation) -> None:
    for variant in evaluation.variants:
        variant.scores["clip_t"] = dict(variant.scores["clip_t_shuffled"])


CASES: dict[str, Callable[[Evaluation], None]] = {
    "base_images": _without_base,
    "references": _without_references,
    "training_images": _two_references,
    "trigger": _trigger_in_no_caption,
    "subject_prompts": lambda evaluation: _keep_prompts(evaluation, 0),
    "few_prompts": lambda evaluation: _keep_prompts(evaluation, 7),
    "fidelity": _references_like_anything,
    "prompt_adherence": _prompts_like_any_other,
    "diversity": _one_seed,
}


def test_nothing_essential_is_unknown_of_a_sound_evaluation():
    assert [unknown.name for unknown in find_unknowns(sound()) if unknown.essential] == []


@pytest.mark.parametrize("name", CASES)
def test_each_gap_is_named_with_reason_and_remedy(name):
    evaluation = sound()
    CASES[name](evaluation)
    found = {unknown.name: unknown for unknown in find_unknowns(evaluation)}
    assert found[name].essential
    assert found[name].reason
    assert found[name].remedy
    assert found[name].title
    assert found[name].to_json()["name"] == name


def test_what_is_essential_comes_first():
    evaluation = sound()
    _one_seed(evaluation)
    flags = [unknown.essential for unknown in find_unknowns(evaluation)]
    assert flags == sorted(flags, reverse=True)
    assert False in flags


@pytest.mark.parametrize(
    ("units", "held_out", "words"),
    [(8, 0, "no image was held out"), (8, 1, "1 held-out of 8 images allow only p >= 0.12"), (12, 3, None)],
)
def test_too_few_held_out_images_leave_memorization_unknown(units, held_out, words):
    evaluation = sound()
    unit = evaluation.references.units[0]
    parts = tuple(
        replace(unit, names=(f"{index}.png",), trained_on=index >= held_out) for index in range(units)
    )
    similarity = np.full((units, units), 0.7)
    np.fill_diagonal(similarity, 1)
    evaluation.references = ReferenceTable(parts, similarity)
    for variant in evaluation.variants:
        variant.reference_similarity = {key: [0.5] * units for key in variant.reference_similarity}
    found = {unknown.name: unknown for unknown in find_unknowns(evaluation)}
    assert ("memorization" in found) == (words is not None)
    if words:
        assert words in found["memorization"].reason
        assert not found["memorization"].essential
