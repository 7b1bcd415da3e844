"""Where an arm stands between its controls: fidelity between the base and the references, adherence between
shuffled prompts and the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import Interval, bootstrap, resampled_means
from lorakit.data.prompts import Prompt
from lorakit.evaluation.score_table import Evaluation, VariantScores

FloatArray = NDArray[np.float64]
RESAMPLES = 10_000
_MIN_RANGE = 1e-3  # a range of cosines below which a share of it means nothing


@dataclass(frozen=True)
class ScoreAnchors:
    """What the raw scores are held against; None where the evaluation has no such control."""

    base_fidelity: float | None
    ceiling: float | None
    base_margin: float | None
    """How much better the base's pictures fit their own prompts than others."""

    @property
    def fidelity(self) -> bool:
        """Whether fidelity can be told: the references are more alike than the base's pictures."""
        return (
            self.base_fidelity is not None
            and self.ceiling is not None
            and self.ceiling - self.base_fidelity > _MIN_RANGE
        )

    @property
    def adherence(self) -> bool:
        """Whether adherence can be told: the base's own pictures follow the prompts."""
        return self.base_margin is not None and self.base_margin > _MIN_RANGE


class NormalizedScores:
    """Fidelity, adherence and quality of several arms on the same prompts; all are shares of a control."""

    def __init__(
        self, evaluation: Evaluation, arms: Sequence[VariantScores], prompts: Sequence[Prompt]
    ) -> None:
        self.arms = list(arms)
        base = evaluation.base
        rows = [base, *arms] if base else list(arms)
        names = (evaluation.eye, "clip_t", "shuffled")
        columns = [evaluation.column(arm, name, prompts) for arm in rows for name in names]
        table = np.stack(columns, 1) if prompts else np.empty((0, len(columns)))  # (G, 3 A)
        self._usable = [bool(column.any()) for column in np.isfinite(table).T]  # no rows: none
        self.table = table[np.isfinite(table[:, self._usable]).all(1)]
        self._first = 3 if base else 0
        self.controls = (
            self._controls(evaluation) if base and len(self.table) else ScoreAnchors(None, None, None)
        )

    def _controls(self, evaluation: Evaluation) -> ScoreAnchors:
        means = self.table.mean(0)
        known = self._usable
        return ScoreAnchors(
            float(means[0]) if known[0] else None,
            float(np.mean(evaluation.ceiling)) if evaluation.ceiling else None,
            float(means[1] - means[2]) if known[1] and known[2] else None,
        )

    def fidelity(self, means: FloatArray, arm: int) -> FloatArray:
        """0 as the base, 1 as the references among themselves. `means` (..., 3 A) are means of `table`."""
        base = means[..., 0]
        share: FloatArray = (means[..., self._first + 3 * arm] - base) / (
            (self.controls.ceiling or 0.0) - base
        )
        return share

    def adherence(self, means: FloatArray, arm: int) -> FloatArray:
        """0 as with shuffled prompts, 1 as the base."""
        at = self._first + 3 * arm
        share: FloatArray = (means[..., at + 1] - means[..., at + 2]) / (means[..., 1] - means[..., 2])
        return share

    def quality(self, means: FloatArray, arm: int) -> FloatArray:
        """Geometric mean of the two, each cut to 0..1: more than a control is no merit."""
        parts = []
        if self.controls.fidelity:
            parts.append(self.fidelity(means, arm))
        if self.controls.adherence:
            parts.append(self.adherence(means, arm))
        if not parts:
            return np.zeros(means.shape[:-1])
        product: FloatArray = np.prod([np.clip(part, 0, 1) for part in parts], axis=0) ** (1 / len(parts))
        return product

    def interval(self, kind: str, arm: int) -> Interval | None:
        """The `fidelity`, `adherence` or `quality` of an arm with its interval over prompts."""
        if not len(self.table) or (kind != "quality" and not getattr(self.controls, kind)):
            return None
        shown = getattr(self, kind)
        return bootstrap(self.table, lambda means: shown(means, arm), n=RESAMPLES)

    def difference(self, arm: int, other: int) -> Interval:
        """Quality of one arm less that of another, paired over prompts."""
        return bootstrap(
            self.table, lambda means: self.quality(means, arm) - self.quality(means, other), n=RESAMPLES
        )

    def qualities(self) -> tuple[FloatArray, FloatArray]:
        """Quality of all arms (A,), and of all arms in resamples (n, A)."""
        everyone = range(len(self.arms))
        point = np.array([float(self.quality(self.table.mean(0), arm)) for arm in everyone])
        drawn = np.concatenate(list(resampled_means(self.table, RESAMPLES, 0)))
        return point, np.stack([self.quality(drawn, arm) for arm in everyone], 1)
