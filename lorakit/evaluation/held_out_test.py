"""An exact test for memorization: are images nearer to the trained references than to those held out?

Nothing but chance decided which references were held out. An adapter that has learned the subject becomes
similar to all of them alike; one that has learned its training images by heart becomes more similar to these.
The observed difference is compared with that of every other choice of held-out references, so that the test
needs no calibration and no assumption about the image encoder.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.evaluation.references import ReferenceTable
from lorakit.evaluation.score_table import Evaluation, VariantScores

MAX_P_VALUE = 0.05
"""Level of a warning, over all variants and subjects together."""
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
    num_held_out: int
    num_references: int
    trigger: str | None = None

    @property
    def memorized_share(self) -> float:
        """The part of the gain that the held-out references have no share in; 0 without a gain."""
        return self.gap / self.gain if self.gain > 0 else 0.0


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
    subject_prompts = evaluation.prompts_of_role("subject")
    for trigger in table.triggers:
        rows = table.subject_units(trigger)
        held_out = np.array([not table.units[row].trained_on for row in rows])
        own = [p for p in subject_prompts if trigger is None or evaluation.prompt_trigger(p) == trigger]
        if not own or held_out.all() or not held_out.any():
            continue
        before = evaluation.reference_means(base, own)[:, rows]
        gains = np.array([evaluation.reference_means(v, own)[:, rows] - before for v in variants])
        known = np.isfinite(gains).all((0, 2))
        if not known.any():
            continue
        gains = gains[:, known].mean(1)  # (V, U)
        p_values = np.minimum(1, _p_values(gains, held_out) * len(table.triggers))
        for variant, gain, p_value in zip(variants, gains, p_values, strict=True):
            trained_gain = float(gain[~held_out].mean())
            gap = trained_gain - float(gain[held_out].mean())
            results[variant.name].append(
                HeldOutTest(trained_gain, gap, float(p_value), int(held_out.sum()), len(rows), trigger)
            )
    return results


def _p_values(gains: FloatArray, held_out: NDArray[np.bool_]) -> FloatArray:
    """Return the p-values (V,) of the gaps of V variants, adjusted for choosing the largest of them.

    Each choice of held-out references has a largest gap over the variants, in units of each variant's own
    spread; a p-value is the share of choices whose largest gap is at least the observed one.
    """
    choices = _choices(held_out)  # (C, U), the first is the real one
    count = int(held_out.sum())
    weights = np.where(choices, -1 / count, 1 / (len(held_out) - count))
    gaps = gains @ weights.T  # (V, C)
    spread = gaps.std(1, keepdims=True)
    gaps = np.where(spread > 1e-12, gaps / np.maximum(spread, 1e-12), 0.0)
    largest = gaps.max(0)
    p_values: FloatArray = (largest[None, :] >= gaps[:, :1] - 1e-9).mean(1)
    return p_values


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
