"""An exact test for memorization: are images nearer to the trained references than to those held out?

Nothing but chance decided which references were held out. An adapter that has learned the subject becomes
similar to all of them alike; one that has memorized its training images becomes more similar to these.
Two figures say so: the similarity to training images beyond the base model's, which rises, and the share of
images whose nearest reference was held out, which falls. What a reference gains because it is typical of the
subject is subtracted first, by its similarity to the other references. The sum of both figures, in units of
their spread, is compared with that for every other choice of held-out references, so that the test needs no
calibration and no assumption about the image encoder.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.data.prompts import Prompt
from lorakit.evaluation.references import ReferenceTable
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

MAX_P_VALUE = 0.05
"""Level of a warning, over all variants and subjects together."""
MIN_ADJUSTED = 8  # references from which their typicality is taken into account
MAX_CHOICES = 20_000  # choices of held-out references that are compared; more are sampled
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOutTest:
    """The result for one variant and subject."""

    gain: float
    """Rise of the similarity to the trained references over the base model's images."""
    gap: float
    """The same minus the rise of the similarity to the held-out references."""
    p_value: float
    """Probability of such a gap by chance, for any of the variants and subjects."""
    nearest_held_out: float
    """Share of the images whose nearest reference was held out."""
    num_held_out: int
    num_references: int
    trigger: str | None = None

    @property
    def memorized_share(self) -> float:
        """The part of the gain that the held-out references have no share in; 0 without a gain."""
        return self.gap / self.gain if self.gain > 0 else 0.0

    @property
    def expected_nearest(self) -> float:
        """Share of images whose nearest reference is a held-out one if the adapter knows all alike."""
        return self.num_held_out / self.num_references


def smallest_p_value(table: ReferenceTable, trigger: str | None) -> float:
    """Return the smallest p-value that the test can have; 1 if no reference was held out, or all were."""
    rows = table.subject_units(trigger)
    held_out = sum(not table.units[row].trained_on for row in rows)
    if held_out in (0, len(rows)):
        return 1.0
    return min(1.0, len(table.triggers) / math.comb(len(rows), held_out))


def compare_with_held_out(
    evaluation: Evaluation, variants: Sequence[VariantScores]
) -> dict[str, list[HeldOutTest]]:
    """Return the tests of each variant by its name, one for each subject that has held-out references."""
    table, base = evaluation.references, evaluation.base
    results: dict[str, list[HeldOutTest]] = {variant.name: [] for variant in variants}
    if table is None or base is None or not variants:
        return results
    for trigger in table.triggers:
        for name, test in _subject_tests(evaluation, base, variants, table, trigger).items():
            results[name].append(test)
    return results


def _subject_tests(
    evaluation: Evaluation,
    base: VariantScores,
    variants: Sequence[VariantScores],
    table: ReferenceTable,
    trigger: str | None,
) -> dict[str, HeldOutTest]:
    """Return the test of each variant that was measured on prompts of the subject."""
    rows = table.subject_units(trigger)
    held_out = np.array([not table.units[row].trained_on for row in rows])
    prompts = evaluation.prompts_of_role("subject")
    own = [p for p in prompts if trigger is None or evaluation.prompt_trigger(p) == trigger]
    if not own or held_out.all() or not held_out.any():
        return {}
    typicality = _typicality(table.similarity[np.ix_(rows, rows)])
    before = _subject_figures(evaluation, base, own, rows)
    figures: dict[str, FloatArray] = {}
    unexplained = []
    for variant in variants:
        after = _subject_figures(evaluation, variant, own, rows)
        known = np.isfinite(after - before).all((0, 2))
        if known.any():
            pair = np.stack([part[:, known].mean(1) for part in (before, after)])  # (2, 2, U)
            figures[variant.name] = pair
            unexplained.append(_unexplained(pair[0], pair[1], typicality))
    if not figures:
        return {}
    p_values = np.minimum(1, _p_values(np.array(unexplained), held_out) * len(table.triggers))
    results = {}
    for (name, ((base_similarity, _), (similarity, nearest))), p_value in zip(
        figures.items(), p_values, strict=True
    ):
        gain = similarity - base_similarity
        results[name] = HeldOutTest(
            float(gain[~held_out].mean()),
            float(gain[~held_out].mean() - gain[held_out].mean()),
            float(p_value),
            float(nearest[held_out].sum()),
            int(held_out.sum()),
            len(rows),
            trigger,
        )
    return results


def _subject_figures(
    evaluation: Evaluation, variant: VariantScores, prompts: Sequence[Prompt], units: Sequence[int]
) -> FloatArray:
    """Return (2, G, U): the similarity of each prompt's images to each unit, and the share of them that it is
    nearest to. NaN for a prompt that was not measured.
    """
    result = np.full((2, len(prompts), len(units)), np.nan)
    for number, prompt in enumerate(prompts):
        keys = [SampleKey(prompt.id, seed) for seed in prompt.seeds]
        known = [variant.reference_similarity[key] for key in keys if key in variant.reference_similarity]
        if known:
            similarity = np.array(known)[:, list(units)]
            is_nearest = np.eye(len(units))[similarity.argmax(1)]
            result[:, number] = similarity.mean(0), is_nearest.mean(0)
    return result


def _typicality(similarity: FloatArray) -> FloatArray:
    """Return the mean similarity (U,) of each reference to the others."""
    return (similarity.sum(1) - np.diag(similarity)) / (len(similarity) - 1)


def _unexplained(before: FloatArray, after: FloatArray, typicality: FloatArray) -> FloatArray:
    """Return figures (2, U) of a variant without what explains them for any choice of held-out references.

    Subtracted are, by least squares, the references' typicality (U,) and the base model's similarity to them.
    Nothing of that depends on which references were held out, so that the test remains exact.
    """
    count = len(typicality)
    if count < MIN_ADJUSTED:
        return np.stack([after[0] - before[0], after[1]])
    constant = np.ones(count)
    explanations = (np.stack([constant, typicality, before[0]], 1), np.stack([constant, typicality], 1))
    residuals = [
        figure - known @ np.linalg.lstsq(known, figure, rcond=None)[0]
        for figure, known in zip(after, explanations, strict=True)
    ]
    return np.stack(residuals)


def _p_values(figures: FloatArray, held_out: NDArray[np.bool_]) -> FloatArray:
    """Return the p-values (V,) of the figures (V, 2, U) of V variants, adjusted for choosing the largest.

    Each choice of held-out references has a largest gap over the variants, in units of each variant's own
    spread; a p-value is the share of choices whose largest gap is at least the observed one.
    """
    choices = _choices(held_out)  # (C, U), the first is the real one
    count = int(held_out.sum())
    weights = np.where(choices, -1 / count, 1 / (len(held_out) - count))
    gaps = _standardized(figures @ weights.T)  # (V, 2, C)
    gaps = _standardized(gaps.sum(1))  # (V, C)
    largest = gaps.max(0)
    p_values: FloatArray = (largest[None, :] >= gaps[:, :1] - 1e-9).mean(1)
    return p_values


def _standardized(values: FloatArray) -> FloatArray:
    """Return values (..., C) in units of their standard deviation over the choices; 0 if there is none."""
    spread = values.std(-1, keepdims=True)
    return np.where(spread > 1e-12, values / np.maximum(spread, 1e-12), 0.0)


def _choices(held_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return choices (C, U) of as many held-out references, the real one first: all, or a sample."""
    total, count = len(held_out), int(held_out.sum())
    if math.comb(total, count) <= MAX_CHOICES:
        rows = np.array(list(itertools.combinations(range(total), count)))
        choices = np.zeros((len(rows), total), bool)
        np.put_along_axis(choices, rows, True, axis=1)
        is_real = (choices == held_out).all(1)
        return np.concatenate([held_out[None], choices[~is_real]])
    order = np.random.default_rng(0).random((MAX_CHOICES - 1, total)).argsort(1)
    return np.concatenate([held_out[None], order < count])
