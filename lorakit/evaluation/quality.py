"""Fidelity and prompt adherence on a scale between two anchors that the evaluation measures itself; quality.

Fidelity is 0 at the base model's images and 1 at true images: the references, each compared with the others.
Prompt adherence is 0 for shuffled prompts and 1 for the base model. Intervals include the uncertainty of the
anchors. Quality is the harmonic mean of both: it is low if one of them is. Near and beyond the upper anchor
there is little merit, so each counts less and less from 80 % on, and no more from 120 % on; the bend is round
because noise biases a sharp one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorakit.core.estimates import Estimates
from lorakit.core.statistics import Interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation.prompt_scores import (
    MIN_UNITS,
    PromptScores,
    collect_prompt_scores,
    linear_estimates,
    mean_base_similarity,
    num_reference_units,
)
from lorakit.evaluation.score_table import Evaluation, VariantScores

FloatArray = NDArray[np.float64]
ScoreName = Literal["fidelity", "prompt_adherence", "quality"]
RatioName = Literal["fidelity", "prompt_adherence"]
SATURATION = 0.2  # half the width of the bend around an upper anchor
MAX_WIDTH = 1.0  # of an interval on a scale from 0 to 1
_MIN_RANGE = 1e-3  # a smaller range of cosines between the anchors is noise
_NO_SCALE: dict[RatioName, str] = {
    "fidelity": "the reference images are not clearly more similar to each other than the base model's "
    "images are to them",
    "prompt_adherence": "the base model's own images do not clearly match their prompts",
}


@dataclass(frozen=True)
class ScoreAnchors:
    """The raw scores at the ends of the scales; None if the evaluation does not have them."""

    base_fidelity: float | None
    reference_fidelity: float | None
    base_adherence_margin: float | None
    """CLIP-T of the base model with its own prompts minus that with shuffled prompts."""
    has_fidelity: bool = False
    """True if the references are clearly more similar to each other than the base model's images to them."""
    has_prompt_adherence: bool = False
    """True if the base model's own images clearly follow the prompts."""


class NormalizedScores:
    """Fidelity, prompt adherence and quality of A variants on the same G prompts."""

    def __init__(
        self, evaluation: Evaluation, variants: Sequence[VariantScores], prompts: Sequence[Prompt]
    ) -> None:
        self._measure(collect_prompt_scores(evaluation, variants, prompts), len(variants))

    @classmethod
    def from_scores(cls, scores: PromptScores, num_variants: int) -> NormalizedScores:
        """Return the same for scores that are arrays already."""
        normalized = cls.__new__(cls)
        normalized._measure(scores, num_variants)
        return normalized

    def _measure(self, scores: PromptScores, num_variants: int) -> None:
        self.scores, self.num_variants = scores, num_variants
        self._figures = Estimates(np.empty(0), (), scores.num_prompts)
        self._parts: dict[RatioName, range] = {}  # columns of the figures: A variants, then the upper anchor
        if scores.num_prompts and (scores.similarity is not None or scores.margin is not None):
            self._figures = linear_estimates(scores)
            size, end = num_variants + 1, len(self._figures.values)
            if scores.similarity is not None:
                self._parts["fidelity"] = range(size)
            if scores.margin is not None:
                self._parts["prompt_adherence"] = range(end - size, end)
        self.anchors = self._measure_anchors()

    def _measure_anchors(self) -> ScoreAnchors:
        base_fidelity = reference_fidelity = None
        if "fidelity" in self._parts:
            base_fidelity = mean_base_similarity(self.scores)
            reference_fidelity = base_fidelity + self._upper_anchor("fidelity")
        return ScoreAnchors(
            base_fidelity,
            reference_fidelity,
            self._upper_anchor("prompt_adherence") if "prompt_adherence" in self._parts else None,
            self._has_scale("fidelity"),
            self._has_scale("prompt_adherence"),
        )

    def _upper_anchor(self, name: RatioName) -> float:
        return float(self._figures.values[self._parts[name][-1]])

    def _has_scale(self, name: RatioName) -> bool:
        """Return True if the upper anchor is above the lower one, beyond chance if that is known."""
        if name not in self._parts:
            return False
        interval = self._figures.interval(self._parts[name][-1])
        return interval.mean > _MIN_RANGE and not interval.ci_low <= 0

    @property
    def fidelity(self) -> FloatArray:
        """Fidelity of each variant (A,)."""
        return self._ratios("fidelity")

    @property
    def prompt_adherence(self) -> FloatArray:
        """Prompt adherence of each variant (A,)."""
        return self._ratios("prompt_adherence")

    def _ratios(self, name: RatioName) -> FloatArray:
        values: FloatArray = self._figures.values[list(self._parts[name])]
        return values[:-1] / values[-1]

    def interval(self, name: ScoreName, variant: int, level: float = 0.95) -> Interval | None:
        """Return a score of the variant with its interval; None if nothing was measured.

        A figure whose anchors cannot be distinguished, or whose interval is wider than its scale, is unknown.
        """
        if name == "quality":
            has_quality = self.anchors.has_fidelity or self.anchors.has_prompt_adherence
            if not has_quality:
                return None
            interval = self.quality.interval(variant, level)
            bias = self._quality_bias(variant)
            low, high = interval.ci_low - bias, interval.ci_high - bias
            return Interval(interval.mean - bias, low, high, interval.num_prompts, level)
        if name not in self._parts:
            return None
        columns = self._parts[name]
        return self._known_ratio(name, self._figures.select([columns[variant], columns[-1]]), level)

    def difference(self, name: RatioName, first: int, second: int, level: float = 0.95) -> Interval | None:
        """Return a score of one variant minus that of another; the anchors that they share partly cancel."""
        if name not in self._parts:
            return None
        columns = self._parts[name]
        weights = np.zeros((len(self._figures.values), 2))
        weights[columns[first], 0] += 1
        weights[columns[second], 0] -= 1
        weights[columns[-1], 1] = 1
        return self._known_ratio(name, self._figures.combine(weights), level)

    def lowest(self, name: RatioName, variant: int, level: float = 0.95) -> float | None:
        """Return the lower end of a score's interval, also where the interval is too wide for a figure; None
        if any value is possible.
        """
        if name not in self._parts:
            return None
        columns = self._parts[name]
        interval = self._figures.select([columns[variant], columns[-1]]).ratio(0, 1, level)
        return interval.ci_low if interval and math.isfinite(interval.ci_low) else None

    def _known_ratio(self, name: RatioName, pair: Estimates, level: float) -> Interval:
        """Return the ratio of two figures; unknown with the reason if it says nothing."""
        count, units = self.scores.num_prompts, num_reference_units(self.scores)
        if name == "fidelity" and units < MIN_UNITS:
            number = "only one reference image" if units == 1 else f"only {units} different reference images"
            return Interval.unknown(f"there {'is' if units == 1 else 'are'} {number}", count, level)
        interval = pair.ratio(0, 1, level)
        if interval is None or pair.values[1] < _MIN_RANGE:
            return Interval.unknown(_NO_SCALE[name], count, level)
        if interval.ci_high - interval.ci_low > MAX_WIDTH:
            sources = [float(source.covariance[1, 1]) for source in pair.sources]
            more = "reference images" if len(sources) > 1 and sources[1] > sources[0] else "prompts"
            reason = f"its interval is wider than the scale: it needs more {more}"
            return Interval.unknown(reason, count, level)
        return interval

    def quality_difference(self, first: int, second: int, level: float = 0.95) -> Interval:
        """Return the quality of one variant minus that of another, paired over prompts and references."""
        return self.quality.difference(first, second, level)

    @cached_property
    def quality(self) -> Estimates:
        """The quality of all variants (A,), 1 at both upper anchors and 0 where one part is 0.

        It is a curve, not a line, so that noise lowers its mean; `interval` removes that bias.
        """
        names = self._names_with_scale
        if not names:
            return Estimates(np.zeros(self.num_variants), (), self.scores.num_prompts)
        ratios = [self._ratios(name) for name in names]
        values, slopes = harmonic_mean([saturate(ratio) for ratio in ratios])
        derivatives = np.zeros((len(self._figures.values), self.num_variants))
        for name, ratio, slope in zip(names, ratios, slopes, strict=True):
            columns = list(self._parts[name])
            weights = slope * saturation_slope(ratio) / self._upper_anchor(name)
            derivatives[columns[:-1]] = np.diag(weights)
            derivatives[columns[-1]] = -weights * ratio
        return self._figures.transform(values, derivatives)

    @cached_property
    def _names_with_scale(self) -> list[RatioName]:
        return [name for name in self._parts if self._has_scale(name)]

    def _quality_bias(self, variant: int) -> float:
        """Return the bias of a variant's quality by noise: the mean of the quality of means that are one
        standard error off, in both directions along each axis of their covariance, minus its own.
        """
        names = self._names_with_scale
        columns = [self._parts[name][index] for name in names for index in (variant, -1)]
        means = self._figures.select(columns)
        covariance = np.sum([source.covariance for source in means.sources], axis=0)
        values, vectors = np.linalg.eigh(covariance)
        steps = vectors * np.sqrt(np.maximum(values, 0) * len(columns))  # (K, K), a column for each axis
        points = means.values[:, None] + np.concatenate([np.zeros((len(columns), 1)), steps, -steps], 1)
        pairs = [(points[2 * part], points[2 * part + 1]) for part in range(len(names))]
        if any((below <= 0).any() for _, below in pairs):
            return 0.0  # too much noise for a correction
        qualities, _ = harmonic_mean([saturate(above / below) for above, below in pairs])
        return float(qualities[1:].mean() - qualities[0])


def saturate(values: FloatArray) -> FloatArray:
    """Return the values, bent so that they count less and less around 1 and no more beyond the bend."""
    start, width = 1 - SATURATION, 4 * SATURATION
    bent = values - np.maximum(values - start, 0) ** 2 / width
    return np.where(values > 1 + SATURATION, 1.0, bent)


def saturation_slope(values: FloatArray) -> FloatArray:
    """Return the derivative of `saturate`."""
    return np.clip(1 - (values - (1 - SATURATION)) / (2 * SATURATION), 0, 1)


def harmonic_mean(parts: Sequence[FloatArray]) -> tuple[FloatArray, list[FloatArray]]:
    """Return the harmonic mean of one or two parts (A,), and its derivative by each.

    Below zero it continues as twice the lowest part, its tangent there.
    """
    if len(parts) == 1:
        return parts[0], [np.ones_like(parts[0])]
    first, second = parts
    positive = (first > 0) & (second > 0)
    total = np.where(positive, first + second, 1)
    values = np.where(positive, 2 * first * second / total, 2 * np.minimum(first, second))
    slopes = [
        np.where(positive, 2 * (other / total) ** 2, 2.0 * (one <= other))
        for one, other in ((first, second), (second, first))
    ]
    return values, slopes
