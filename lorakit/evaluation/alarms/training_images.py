"""Alarms about the training images: copied ones, memorized ones, and a loss that rises on others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lorakit.core.shares import share_interval
from lorakit.core.statistics import Interval, mean_interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation.alarms.alarm import Alarm, FloatArray, Level, family_level, worst_examples
from lorakit.evaluation.copies import is_copy
from lorakit.evaluation.held_out_test import (
    MAX_P_VALUE,
    HeldOutTest,
    compare_with_held_out,
    smallest_p_value,
)
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.report.number_format import format_count, format_percent, join_names
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

CHANCE_COPIES, SURE_COPIES = 0.03, 0.05
"""Shares of copies among images: a warning above the first, an alarm if the interval is above the second. By
chance 1.2 % of fresh images of the shape world repeat a training image (3 of 96 in 11 % of evaluations), 6 %
in a world of only 840 images. The base model's own share is added."""
MIN_COPIES = 2  # one alone may be chance
SURE_P_VALUE = 0.01  # of the test with held-out references, for an alarm
MIN_MEMORIZED_SHARE, SURE_MEMORIZED_SHARE = 0.1, 0.25
"""Part of the gain in similarity that held-out references have no share in: a warning above the first, an
alarm above the second. Any adapter knows its training images a little better."""
MAX_NEAREST_RATIO, SURE_NEAREST_RATIO = 0.5, 0.25
"""Share of images whose nearest reference was held out, over the expected share: a warning below the first,
an alarm below the second."""
MAX_LISTED = 3
MIN_LOSSES = 3  # held-out images
SURE_LOSSES = 5
"""Held-out images from which a loss that rises beyond chance is an alarm; of three or four, one unusual image
decides."""


def copied_images(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Images repeat single training images, in more cases than chance and the base model explain."""
    scale, prompts = evaluation.copy_scale, evaluation.prompts_of_role("subject") or evaluation.prompts
    if scale is None or not variant.training_matches:
        return None
    copied = copied_keys(evaluation, variant, prompts)
    if len(copied) < MIN_COPIES:
        return None
    measured = [key for key in variant.training_matches if key.prompt_id in {p.id for p in prompts}]
    flags, groups = [float(key in copied) for key in measured], [key.prompt_id for key in measured]
    base = evaluation.base
    by_base = len(copied_keys(evaluation, base, prompts)) / len(measured) if base else 0.0
    share = share_interval(flags, groups)
    firm = share_interval(flags, groups, level=family_level(evaluation))
    if not share.mean > CHANCE_COPIES + by_base:
        return None
    level: Level = "alarm" if firm.ci_low > SURE_COPIES + by_base else "warning"
    limit = (SURE_COPIES if level == "alarm" else CHANCE_COPIES) + by_base
    counts = Counter(variant.training_matches[key].image for key in copied)
    names = [f"{name} ({count})" for name, count in counts.most_common()]
    message = (
        f"{len(copied)} of {format_count(len(measured), 'image')} are near-identical to training images: "
        f"{join_names(names, MAX_LISTED)}"
    )
    if by_base:
        message += f"; the base model's are in {format_percent(by_base)} of the cases"
    agreement = {key: variant.training_matches[key].agreement for key in copied}
    return Alarm("copied_images", message, share, limit, worst_examples(agreement, prompts), level)


def copied_keys(
    evaluation: Evaluation, variant: VariantScores | None, prompts: Sequence[Prompt] | None = None
) -> list[SampleKey]:
    """Return the images of a variant that are copies of a training image, of these prompts or of all."""
    scale = evaluation.copy_scale
    if scale is None or variant is None:
        return []
    ids = {prompt.id for prompt in (evaluation.prompts if prompts is None else prompts)}
    sscd = variant.scores.get("sscd", {})
    return [
        key
        for key, match in variant.training_matches.items()
        if key.prompt_id in ids and is_copy(match, scale, sscd.get(key))
    ]


def memorization(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Images are nearer to the training images than to true images that were held out."""
    tests = compare_with_held_out(evaluation, evaluation.adapter_variants).get(variant.name, [])
    certain = [test for test in tests if test.p_value <= MAX_P_VALUE]
    certain = [test for test in certain if _is_relevant(test, MIN_MEMORIZED_SHARE, MAX_NEAREST_RATIO)]
    if certain:
        return _held_out_alarm(evaluation, variant, min(certain, key=lambda test: test.p_value))
    table = evaluation.references
    if table is None or any(smallest_p_value(table, trigger) <= MAX_P_VALUE for trigger in table.triggers):
        return None
    return _beyond_references(evaluation, variant)


def _is_relevant(test: HeldOutTest, memorized_share: float, nearest_ratio: float) -> bool:
    """Return True if the difference is large, not only beyond chance."""
    few_nearest = test.nearest_held_out < nearest_ratio * test.expected_nearest
    return test.memorized_share > memorized_share or few_nearest


def _held_out_alarm(evaluation: Evaluation, variant: VariantScores, test: HeldOutTest) -> Alarm:
    is_sure = test.p_value <= SURE_P_VALUE and _is_relevant(test, SURE_MEMORIZED_SHARE, SURE_NEAREST_RATIO)
    subject = f" of {test.trigger}" if test.trigger else ""
    message = (
        f"images know the training images{subject} better than the {test.num_held_out} true images that were "
        f"held out: {format_percent(test.nearest_held_out)} of them are nearest to one of these, "
        f"{format_percent(test.expected_nearest)} are expected (p = {test.p_value:.2g}, exact test over "
        f"{test.num_references} images)"
    )
    level: Level = "alarm" if is_sure else "warning"
    value = Interval(test.nearest_held_out, np.nan, np.nan, len(evaluation.prompts_of_role("subject")))
    examples = sorted(variant.training_matches, key=lambda key: -variant.training_matches[key].similarity)
    return Alarm("memorization", message, value, test.expected_nearest, examples[:MAX_LISTED], level)


def _beyond_references(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """Warn of images that resemble the references more than these resemble each other.

    Without enough held-out references this is only a hint: the subject may be shown in fewer ways.
    """
    prompts = evaluation.prompts_of_role("subject")
    scores = NormalizedScores(evaluation, [variant], prompts)
    fidelity = scores.interval("fidelity", 0, family_level(evaluation))
    if fidelity is None or not fidelity.ci_low > 1:
        return None
    message = (
        "images of new scenes are more similar to the reference images than these are to each other "
        f"(fidelity {format_percent(fidelity.mean)}); without held-out images it is not certain that the "
        "adapter memorized them"
    )
    return Alarm("memorization", message, fidelity, 1.0, level="warning")


def overfitting(evaluation: Evaluation, variant: VariantScores) -> Alarm | None:
    """The loss of held-out images rises while that of training images falls, both against the base model."""
    base = evaluation.base
    held_out, trained = (_loss_change(base, variant, name) for name in ("validation", "train"))
    if held_out is None or trained is None or len(held_out) < MIN_LOSSES or len(trained) < MIN_LOSSES:
        return None
    rise, fall = mean_interval(held_out), mean_interval(trained)
    if not (rise.ci_low > 0 and fall.mean < 0):
        return None
    level_of_family = family_level(evaluation)
    is_sure = len(held_out) >= SURE_LOSSES and mean_interval(held_out, level=level_of_family).ci_low > 0
    message = (
        f"the loss of held-out images is {format_percent(rise.mean)} above the base model's, that of "
        f"training images {format_percent(-fall.mean)} below it "
        f"({format_count(len(held_out), 'held-out image')})"
    )
    level: Level = "alarm" if is_sure else "warning"
    return Alarm("overfitting", message, rise, 0.0, level=level)


def _loss_change(base: VariantScores | None, variant: VariantScores, name: str) -> FloatArray | None:
    """Return the change of the loss of each image (N,), relative to the base model's mean."""
    before = np.array(base.losses.get(name, []) if base else [])
    after = np.array(variant.losses.get(name, []))
    if not len(before) or before.shape != after.shape or not before.mean() > 0:
        return None
    change: FloatArray = (after - before) / before.mean()
    return change
