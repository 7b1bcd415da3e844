"""The verdict on a run: which checkpoint to use, or the cause of a failure, and what to do next.

The first sentence is for a reader who knows nothing of the figures, which follow. It is good news only if a
sound checkpoint is recommended and nothing essential is unknown, and bad news only for real damage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.evaluation.causes import (
    DAMAGES,
    Case,
    Cause,
    find_alarm,
    find_causes,
    strength_of,
)
from lorakit.evaluation.report.number_format import format_percent, format_percent_interval, join_names
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import Selection, VariantQuality
from lorakit.evaluation.unknowns import Unknown, find_unknowns


@dataclass(frozen=True)
class Verdict:
    """A headline for everybody, and details with figures; `good` is None for neither good nor bad news."""

    headline: str
    good: bool | None
    details: str = ""
    next_step: str = ""
    """The next step as a phrase: `train longer`."""
    causes: tuple[Cause, ...] = ()

    @property
    def text(self) -> str:
        """The headline and the details."""
        return f"{self.headline} {self.details}".strip()


def diagnose(evaluation: Evaluation, selection: Selection) -> Verdict:
    """Name the checkpoint to use, or the cause of a failure, and the next step."""
    case = Case(evaluation, selection)
    causes = tuple(find_causes(case))
    unknowns = [unknown for unknown in find_unknowns(evaluation) if unknown.essential]
    if causes:
        return _explained(case, causes, unknowns)
    if case.selected:
        return _recommended(case, case.selected, unknowns)
    details = [f"It is unknown: {selection.reason}.", *map(_unknown_text, unknowns)]
    step = unknowns[0].remedy if unknowns else "evaluate again"
    headline = f"No checkpoint can be recommended yet: {step}."
    return Verdict(headline, None, " ".join(details), step)


def _explained(case: Case, causes: tuple[Cause, ...], unknowns: Sequence[Unknown]) -> Verdict:
    """Open with the weightiest cause, and name the checkpoint to use until it is removed."""
    first, *others = causes
    details = [first.evidence]
    if case.selected:
        figures = _figures(case)
        details.append(f"Until then use {format_variant(case.selected)}{': ' if figures else ''}{figures}.")
    elif case.nearest and len(case.candidates) > 1 and first.is_damage:
        details.append(f"The least bad is {format_variant(case.nearest)}.")
    if first.is_about_data:  # it explains what follows from it
        others = [cause for cause in others if cause.is_about_data]
    details += [f"{cause.sentence} {cause.evidence}" for cause in others]
    details += map(_unknown_text, unknowns)
    is_bad = any(cause.is_damage for cause in causes)
    return Verdict(first.sentence, False if is_bad else None, " ".join(details), first.next_step, causes)


def _recommended(case: Case, selected: VariantQuality, unknowns: Sequence[Unknown]) -> Verdict:
    """Name the checkpoint to use, and the reason if it is not the last one at full strength."""
    name = format_variant(selected)
    figures = _figures(case, explained=True)
    details = [f"{figures[:1].upper()}{figures[1:]}."] if figures else []
    reasons = [unknown.reason for unknown in unknowns]
    remedies = [unknown.remedy for unknown in unknowns]
    lowest = case.lowest_fidelity(selected)
    if not unknowns and not (lowest is not None and lowest > 0):
        fidelity = case.selection.fidelity
        is_known = fidelity is not None and fidelity.is_known
        reasons.append(
            "fidelity is not above the base model's beyond chance"
            if is_known
            else f"fidelity {format_percent_interval(fidelity)}"
        )
        remedies.append("hold more images out (validate.fraction), and evaluate with more prompts")
    if reasons:
        headline = f"Use {name}, as far as is known: {join_names(reasons)}."
        details.append(f"What to do: {join_names(remedies)}.")
        return Verdict(headline, None, " ".join(details), remedies[0])
    reason = _reason_against_others(case, selected)
    headline = f"Use {name}: {reason}." if reason else f"Use {name}."
    return Verdict(headline, True, " ".join(details), f"use {name}")


def _reason_against_others(case: Case, selected: VariantQuality) -> str:
    """Say why a later checkpoint or a higher strength is not recommended: the first alarm that it has."""
    step, strength = selected.variant.step or 0, strength_of(selected)
    stronger = [
        c
        for c in case.candidates
        if (c.variant.step or 0) == step and strength_of(c) > strength and find_alarm(c)
    ]
    later = [c for c in case.candidates if (c.variant.step or 0) > step and find_alarm(c)]
    for subject, candidates in (("a higher strength", stronger), ("a later checkpoint", later)):
        alarm = find_alarm(candidates[0]) if candidates else None
        if alarm and alarm.name in DAMAGES:
            return f"{subject} {DAMAGES[alarm.name].verb}"
    if strength < 1 and any((c.variant.step or 0) == step and strength_of(c) == 1 for c in case.candidates):
        return "the adapter is too strong at strength 1"
    return ""


def format_variant(candidate: VariantQuality) -> str:
    """Return a variant in words: `step 400 at strength 1`, or the name of a folder of images."""
    variant = candidate.variant
    if variant.step is None:
        return variant.name
    return f"step {variant.step} at strength {strength_of(candidate):g}"


def fidelity_figure(evaluation: Evaluation, selection: Selection) -> str:
    """Return the fidelity of the recommended variant, or its lower end if its interval is too wide for a
    figure; an empty text if neither is known.
    """
    fidelity, case = selection.fidelity, Case(evaluation, selection)
    candidate = case.nearest
    if fidelity is None or candidate is None:
        return ""
    if fidelity.is_known:
        return "" if math.isnan(fidelity.mean) else format_percent_interval(fidelity)
    lowest = case.lowest_fidelity(candidate)
    return f"at least {format_percent(lowest)}" if lowest is not None and lowest > 0 else ""


def _figures(case: Case, *, explained: bool = False) -> str:
    """Return fidelity and prompt adherence of the recommended variant with their intervals."""
    adherence = case.selection.prompt_adherence
    parts = []
    if fidelity := fidelity_figure(case.evaluation, case.selection):
        ends = " (0 % is the base model, 100 % other images of the subject)" if explained else ""
        parts.append(f"fidelity {fidelity}{ends}")
    if adherence and not (adherence.is_known and math.isnan(adherence.mean)):
        ends = " (100 % is the base model)" if explained else ""
        parts.append(f"prompt adherence {format_percent_interval(adherence)}{ends}")
    return ", ".join(parts)


def _unknown_text(unknown: Unknown) -> str:
    return f"Unknown: {unknown.reason} ({unknown.remedy})."
