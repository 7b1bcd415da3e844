"""Scores of a variant on a scale between two anchors that the evaluation measures itself.

Fidelity is 0 at the base model's images and 1 at the reference images compared with each other. Prompt
adherence is 0 for shuffled prompts and 1 for the base model. Quality is their geometric mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import Interval, bootstrap, resampled_means
from lorakit.data.prompts import Prompt
from lorakit.evaluation.score_table import Evaluation, VariantScores

FloatArray = NDArray[np.float64]
ScoreName = Literal["fidelity", "prompt_adherence", "quality"]
RESAMPLES = 10_000
_MIN_RANGE = 1e-3  # a smaller range of cosines between the anchors is noise
_COLUMNS = 3  # of each variant in `prompt_means`: fidelity metric, CLIP-T, CLIP-T with shuffled prompts


@dataclass(frozen=True)
class ScoreAnchors:
    """The raw scores at the ends of the scales; None if the evaluation does not have them."""

    base_fidelity: float | None
    reference_fidelity: float | None
    base_adherence_margin: float | None
    """CLIP-T of the base model with its own prompts minus that with shuffled prompts."""

    @property
    def has_fidelity(self) -> bool:
        """True if the references are more similar to each other than the base model's images to them."""
        return (
            self.base_fidelity is not None
            and self.reference_fidelity is not None
            and self.reference_fidelity - self.base_fidelity > _MIN_RANGE
        )

    @property
    def has_prompt_adherence(self) -> bool:
        """True if the base model's own images follow the prompts."""
        return self.base_adherence_margin is not None and self.base_adherence_margin > _MIN_RANGE


@dataclass(frozen=True)
class QualityEstimate:
    """Quality of A variants: `point` (A,), and the same in N resamples of the prompts (N, A)."""

    point: FloatArray
    resamples: FloatArray


class NormalizedScores:
    """Fidelity, prompt adherence and quality of A variants on the same G prompts."""

    def __init__(
        self, evaluation: Evaluation, variants: Sequence[VariantScores], prompts: Sequence[Prompt]
    ) -> None:
        self.variants = list(variants)
        base = evaluation.base
        rows = [base, *variants] if base else list(variants)
        names = (evaluation.fidelity_metric, "clip_t", "clip_t_shuffled")
        columns = [evaluation.prompt_means(variant, name, prompts) for variant in rows for name in names]
        table = np.stack(columns, 1) if prompts else np.empty((0, len(columns)))  # (G, 3 A)
        self._has_values = [bool(column.any()) for column in np.isfinite(table).T]  # no prompts: all False
        self.prompt_means = table[np.isfinite(table[:, self._has_values]).all(1)]
        self._variant_offset = _COLUMNS if base else 0
        self._prompts = list(prompts)
        self.anchors = ScoreAnchors(None, None, None)
        if base and len(self.prompt_means):
            self.anchors = self._measure_anchors(evaluation)

    def _measure_anchors(self, evaluation: Evaluation) -> ScoreAnchors:
        means, known = self.prompt_means.mean(0), self._has_values
        return ScoreAnchors(
            float(means[0]) if known[0] else None,
            _mean_ceiling(evaluation, self._prompts),
            float(means[1] - means[2]) if known[1] and known[2] else None,
        )

    def fidelity(self, means: FloatArray, variant: int) -> FloatArray:
        """Return 0 for the base model, 1 for the references; `means` (..., 3 A) of `prompt_means`."""
        base = means[..., 0]
        column = self._variant_offset + _COLUMNS * variant
        share: FloatArray = (means[..., column] - base) / ((self.anchors.reference_fidelity or 0.0) - base)
        return share

    def prompt_adherence(self, means: FloatArray, variant: int) -> FloatArray:
        """Return 0 for shuffled prompts, 1 for the base model; `means` (..., 3 A) of `prompt_means`."""
        column = self._variant_offset + _COLUMNS * variant
        margin = means[..., column + 1] - means[..., column + 2]
        share: FloatArray = margin / (means[..., 1] - means[..., 2])
        return share

    def quality(self, means: FloatArray, variant: int) -> FloatArray:
        """Return the geometric mean of the two, each clipped to 0..1: beyond an anchor there is no merit."""
        parts = []
        if self.anchors.has_fidelity:
            parts.append(self.fidelity(means, variant))
        if self.anchors.has_prompt_adherence:
            parts.append(self.prompt_adherence(means, variant))
        if not parts:
            return np.zeros(means.shape[:-1])
        product: FloatArray = np.prod([np.clip(part, 0, 1) for part in parts], axis=0) ** (1 / len(parts))
        return product

    def interval(self, name: ScoreName, variant: int) -> Interval | None:
        """Return a score of the variant with its interval over prompts; None if it cannot be measured."""
        if not len(self.prompt_means):
            return None
        if name == "fidelity" and not self.anchors.has_fidelity:
            return None
        if name == "prompt_adherence" and not self.anchors.has_prompt_adherence:
            return None
        score = getattr(self, name)
        return bootstrap(self.prompt_means, lambda means: score(means, variant), n=RESAMPLES)

    def quality_difference(self, first: int, second: int) -> Interval:
        """Return the quality of one variant minus that of another, paired over prompts."""
        return bootstrap(
            self.prompt_means,
            lambda means: self.quality(means, first) - self.quality(means, second),
            n=RESAMPLES,
        )

    def quality_estimate(self) -> QualityEstimate:
        """Return the quality of all variants, on the prompts and in resamples of them."""
        variants = range(len(self.variants))
        point = np.array([float(self.quality(self.prompt_means.mean(0), v)) for v in variants])
        resampled = np.concatenate(list(resampled_means(self.prompt_means, RESAMPLES, 0)))
        return QualityEstimate(point, np.stack([self.quality(resampled, v) for v in variants], 1))


def _mean_ceiling(evaluation: Evaluation, prompts: Sequence[Prompt]) -> float | None:
    """Return the fidelity of true images, mean over the prompts' subjects; None without two references."""
    if evaluation.references is None:
        return None
    values = [evaluation.references.ceiling(evaluation.prompt_trigger(prompt)) for prompt in prompts]
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
