"""Unknowns: what an evaluation could not measure, with the reason and the remedy.

What was not measured is not good: a verdict may be green only if nothing essential is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lorakit.evaluation.copies import MIN_TRAINING_UNITS
from lorakit.evaluation.held_out_test import MAX_P_VALUE, smallest_p_value
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.references import ReferenceTable
from lorakit.evaluation.report.number_format import format_count, join_names
from lorakit.evaluation.score_table import Evaluation

MIN_SUBJECT_PROMPTS = 8  # with fewer, intervals over prompts cover too rarely, or are wider than the scale

UnknownName = Literal[
    "base_images",
    "references",
    "training_images",
    "trigger",
    "subject_prompts",
    "few_prompts",
    "fidelity",
    "prompt_adherence",
    "copied_images",
    "memorization",
    "diversity",
    "drift",
    "class_leakage",
    "validation_loss",
]
TITLES: dict[UnknownName, str] = {
    "base_images": "Comparison with the base model",
    "references": "Fidelity and copies",
    "training_images": "Fidelity and copies",
    "trigger": "Fidelity to the subject",
    "subject_prompts": "Everything about the subject",
    "few_prompts": "Firm figures",
    "copied_images": "Copies",
    "prompt_adherence": "Prompt adherence",
    "validation_loss": "Validation loss",
}


@dataclass(frozen=True)
class Unknown:
    """Something that could not be measured; without it no verdict is good if it is `essential`."""

    name: UnknownName
    reason: str
    remedy: str
    essential: bool = True

    @property
    def title(self) -> str:
        """The name as a heading."""
        return TITLES.get(self.name, self.name.replace("_", " ").capitalize())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return vars(self)


def find_unknowns(evaluation: Evaluation) -> list[Unknown]:
    """Return everything that the evaluation could not measure, what is essential first."""
    checks: list[Callable[[Evaluation], Iterator[Unknown]]] = [
        _base_images,
        _references,
        _trigger,
        _prompts,
        _scales,
        _diversity,
        _memorization,
        _other_prompts,
        _validation_loss,
    ]
    unknowns = [unknown for check in checks for unknown in check(evaluation)]
    return sorted(unknowns, key=lambda unknown: not unknown.essential)


def _base_images(evaluation: Evaluation) -> Iterator[Unknown]:
    if evaluation.base is None:
        yield Unknown(
            "base_images",
            "there are no images of the base model, which every score is compared with",
            "add them with --base-images DIR: the same prompts and seeds without the adapter",
        )


def _references(evaluation: Evaluation) -> Iterator[Unknown]:
    table, facts = evaluation.references, evaluation.facts
    if table is None:
        yield Unknown(
            "references",
            "there are no reference images",
            "use --references DIR with images of the subject",
        )
        return
    trained = len([unit for unit in table.units if unit.trained_on])
    trained = max(trained, facts.num_images or 0) if facts else trained
    if trained < MIN_TRAINING_UNITS:
        yield Unknown(
            "training_images",
            f"there {'is' if trained == 1 else 'are'} only {format_count(trained, 'distinct training image')}"
            f"; a scale needs {MIN_TRAINING_UNITS}",
            "train on 5 to 20 different images",
        )
    elif evaluation.copy_scale is None:
        yield Unknown(
            "copied_images",
            "the images were not compared with the training images",
            "evaluate again",
        )


def _trigger(evaluation: Evaluation) -> Iterator[Unknown]:
    concepts = evaluation.facts.concepts if evaluation.facts else ()
    for trigger in dict.fromkeys(concept.trigger for concept in concepts if concept.trigger):
        if not any(concept.num_with_trigger for concept in concepts if concept.trigger == trigger):
            yield Unknown(
                "trigger",
                f"the trigger word {trigger!r} is in no caption, so that prompts with it say nothing",
                "add it to the captions, then train again",
            )


def _prompts(evaluation: Evaluation) -> Iterator[Unknown]:
    count = len(evaluation.prompts_of_role("subject"))
    remedy = "create 24 with `lorakit eval prompts`"
    if not count:
        yield Unknown("subject_prompts", "no prompt is about the subject", remedy)
    elif count < MIN_SUBJECT_PROMPTS:
        reason = f"only {format_count(count, 'prompt')} about the subject; a firm figure needs "
        yield Unknown("few_prompts", f"{reason}{MIN_SUBJECT_PROMPTS}", remedy)


def _scales(evaluation: Evaluation) -> Iterator[Unknown]:
    """Yield the scales whose ends are too near each other to compare anything with."""
    prompts = evaluation.prompts_of_role("subject")
    if evaluation.base is None or not prompts:
        return
    anchors = NormalizedScores(evaluation, evaluation.adapter_variants, prompts).anchors
    if evaluation.references and len(evaluation.references.units) > 1 and not anchors.has_fidelity:
        yield Unknown(
            "fidelity",
            "the base model's images resemble the references as much as these resemble each other",
            "use another image encoder (--image-encoder), or references that show only the subject",
        )
    if not anchors.has_prompt_adherence:
        yield Unknown(
            "prompt_adherence",
            "the base model's images fit their prompts no better than other prompts",
            "use prompts that describe different scenes",
        )


def _diversity(evaluation: Evaluation) -> Iterator[Unknown]:
    counts = [len(prompt.seeds) for prompt in evaluation.prompts]
    if counts and max(counts) < 2:
        yield Unknown(
            "diversity",
            "each prompt has one seed",
            "give each prompt 4 seeds (`seeds: [0, 1, 2, 3]` in the prompt file)",
        )


def _memorization(evaluation: Evaluation) -> Iterator[Unknown]:
    table = evaluation.references
    if table is None or evaluation.base is None:
        return
    limits = {trigger: smallest_p_value(table, trigger) for trigger in table.triggers}
    weak = [trigger for trigger, p_value in limits.items() if p_value > MAX_P_VALUE]
    if not weak:
        return
    held_out = sum(not table.units[index].trained_on for t in weak for index in table.subject_units(t))
    reason = (
        "no image was held out from the training"
        if not held_out
        else f"{_held_out_text(table, weak)} allow only p >= {max(limits.values()):.2f}"
    )
    yield Unknown(
        "memorization",
        reason,
        "train on 12 or more different images, of which 3 or 4 are held out (`validate.fraction: auto`)",
        essential=False,
    )


def _held_out_text(table: ReferenceTable, triggers: list[str | None]) -> str:
    rows = [index for trigger in triggers for index in table.subject_units(trigger)]
    held_out = sum(not table.units[index].trained_on for index in rows)
    names = join_names([trigger for trigger in triggers if trigger]) if len(table.triggers) > 1 else ""
    return f"{held_out} held-out of {format_count(len(rows), 'image')}{' of ' + names if names else ''}"


def _other_prompts(evaluation: Evaluation) -> Iterator[Unknown]:
    remedy = "add some to the prompt file: `lorakit eval prompts` writes them"
    if not evaluation.prompts_of_role("class", "unrelated"):
        yield Unknown("drift", "there are no prompts without the subject", remedy, essential=False)
    if evaluation.triggers and not evaluation.prompts_of_role("class"):
        reason = "there are no prompts with the class noun alone"
        yield Unknown("class_leakage", reason, remedy, essential=False)


def _validation_loss(evaluation: Evaluation) -> Iterator[Unknown]:
    if evaluation.facts and not any(variant.losses.get("validation") for variant in evaluation.variants):
        yield Unknown(
            "validation_loss",
            "no image was held out from the training, or it was not measured",
            "train on 12 or more different images, or set validate.folder",
            essential=False,
        )
