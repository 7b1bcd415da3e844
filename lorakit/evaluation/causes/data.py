"""Causes in the data: captions of other images, one image, no trigger word, two subjects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorakit.evaluation.causes.case import Case, Cause, all_damaged
from lorakit.evaluation.references import ReferenceTable
from lorakit.evaluation.report.number_format import (
    format_count,
    format_percent,
    format_percent_interval,
    join_names,
)
from lorakit.evaluation.run_facts import SubjectGroups
from lorakit.evaluation.score_table import Evaluation

MAX_MISMATCH, MAX_SURE_MISMATCH = 0.35, 0.5  # caption match: its mean, and the upper end of its interval
MIN_CAPTION_RANGE = 0.3  # of the base model's prompt adherence, in cosine; nearer captions are alike
MAX_LIKENESS = 0.2  # of two groups of references; of one subject .26 and more in every dataset measured


def captions_mismatched(case: Case) -> Cause | None:
    """Images fit their own captions no better than those of other images."""
    match, margin = case.facts.caption_match, case.base_margin
    if match is None or (margin is not None and match.reach < MIN_CAPTION_RANGE * margin):
        return None
    ignored = case.with_alarm("prompt_ignored")
    adherence = case.nearest.prompt_adherence if case.nearest else None
    is_likely = bool(ignored) or (adherence is not None and adherence.ci_high < 1)
    limit = 1 - MAX_MISMATCH / 2 if is_likely else MAX_SURE_MISMATCH
    if not (match.share.mean < MAX_MISMATCH and match.share.ci_high < limit):
        return None
    evidence = (
        f"An image fits its own caption {format_percent_interval(match.share)} as well as the best of the "
        f"{match.num_captions} captions (0 % is a caption of another image)"
    )
    evidence += f"; look at {join_names(match.worst)}." if match.worst else "."
    return Cause(
        "captions_mismatched",
        "The captions do not match their images: check them, then train again.",
        "check the captions, then train again",
        evidence,
        is_damage=bool(ignored),
    )


def one_image(case: Case) -> Cause | None:
    """A subject has one training image, or copies of one."""
    triggers = {concept.trigger for concept in case.facts.concepts}
    for trigger in triggers:
        own = [c for c in case.facts.concepts if c.trigger == trigger]
        if trigger is None and len(triggers) > 1:
            continue  # other images beside those of a subject
        if sum(concept.num_distinct for concept in own) == 1:
            count = sum(concept.num_images for concept in own)
            images = "one image" if count == 1 else f"{count} copies of one image"
            return Cause(
                "one_image",
                f"The adapter was trained on {images} only: add 5 to 20 different images, then train again.",
                "add 5 to 20 different images, then train again",
                "From one image neither the adapter nor this evaluation can distinguish what belongs to the "
                "subject from what belongs to that image.",
                is_damage=all_damaged(case),
            )
    return None


def trigger_in_no_caption(case: Case) -> Cause | None:
    """The trigger word of a subject is in none of its captions."""
    for trigger in dict.fromkeys(concept.trigger for concept in case.facts.concepts if concept.trigger):
        own = [concept for concept in case.facts.concepts if concept.trigger == trigger]
        if not any(concept.num_with_trigger for concept in own):
            count = format_count(sum(concept.num_images for concept in own), "image")
            folders = join_names([concept.folder for concept in own])
            return Cause(
                "trigger_in_no_caption",
                f"The trigger word {trigger!r} is in no caption: add it to the captions, then train again.",
                "add the trigger word to the captions, then train again",
                f"None of {count} in {folders} has a caption with it, so that the word means nothing to the "
                "adapter.",
                is_damage=all_damaged(case),
            )
    return None


def two_subjects(case: Case) -> Cause | None:
    """The images of one trigger word fall into two groups that are hardly alike."""
    groups = case.facts.subject_groups
    likeness = _likeness(case.evaluation, groups) if groups else None
    if groups is None or likeness is None or likeness > MAX_LIKENESS:
        return None
    word = f"the trigger word {groups.trigger!r}" if groups.trigger else "the captions"
    first, second = groups.folders or (groups.names[0][0], groups.names[1][0])
    sizes = [len(names) for names in groups.names]
    return Cause(
        "two_subjects",
        f"Two different subjects share {word}: give each a word of its own, then train again.",
        "give each subject a trigger word of its own, then train again",
        f"The training images fall into two groups of {sizes[0]} and {sizes[1]}, for instance {first} and "
        f"{second}; images of the two are {format_percent(max(likeness, 0))} as alike as within a group (0 % "
        "are the base model's images).",
        is_damage=all_damaged(case),
    )


def _likeness(evaluation: Evaluation, groups: SubjectGroups) -> float | None:
    """Return 1 if references of the two groups are as alike as within each, 0 for the base model's images."""
    table, base = evaluation.references, evaluation.base
    prompts = evaluation.prompts_of_role("subject")
    if table is None or base is None or not prompts:
        return None
    rows = [_units_of(table, names) for names in groups.names]
    if min(map(len, rows)) < 2:
        return None
    inside = [table.similarity[i, j] for own in rows for i in own for j in own if i != j]
    between = float(table.similarity[np.ix_(*rows)].mean())
    level = float(np.nanmean(evaluation.reference_means(base, prompts)[:, rows[0] + rows[1]]))
    span = float(np.mean(inside)) - level
    return (between - level) / span if span > 1e-3 else None


def _units_of(table: ReferenceTable, names: Sequence[str]) -> list[int]:
    """Return the units of the references that are in a group; their names may lack the folder."""
    files = set(names)
    short = {name.partition("/")[2] for name in names}
    return [row for row, unit in enumerate(table.units) if any(n in files or n in short for n in unit.names)]
