"""Scores of the base model and of variants by prompt, as arrays, and the estimates that they add up to.

Fidelity and prompt adherence are ratios of means over prompts. The means are estimated here, with the
uncertainty from the prompts and, for similarities to the references, from these as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.core.estimates import Estimates, Variation, variation_of_means
from lorakit.data.prompts import Prompt
from lorakit.evaluation.references import ReferenceTable
from lorakit.evaluation.score_table import Evaluation, VariantScores

FloatArray = NDArray[np.float64]
MIN_UNITS = 3  # reference images whose variation can be estimated


@dataclass(frozen=True)
class PromptScores:
    """Scores of V variants, the base model first, on G prompts; None for scores that were not measured."""

    similarity: FloatArray | None  # (V, G, U) with each unit of the references
    margin: FloatArray | None  # (V, G) CLIP-T with the own prompt minus that with other prompts
    subjects: tuple[str | None, ...]  # (G,) the trigger of each prompt
    references: ReferenceTable | None = None

    @property
    def num_prompts(self) -> int:
        """The number of prompts G."""
        return len(self.subjects)

    def select_prompts(self, indices: Sequence[int]) -> PromptScores:
        """Return the scores on some of the prompts."""
        rows = list(indices)
        return PromptScores(
            None if self.similarity is None else self.similarity[:, rows],
            None if self.margin is None else self.margin[:, rows],
            tuple(self.subjects[index] for index in rows),
            self.references,
        )

    def select_variants(self, variants: Sequence[int]) -> PromptScores:
        """Return the scores of some of the variants, beside the base model's; 0 is the first variant."""
        rows = [0, *(1 + variant for variant in variants)]
        return PromptScores(
            None if self.similarity is None else self.similarity[rows],
            None if self.margin is None else self.margin[rows],
            self.subjects,
            self.references,
        )

    def combine_variants(self, weights: FloatArray) -> PromptScores:
        """Return the scores of a single variant that is, on each prompt, a mean with the weights (G, A)."""
        similarity, margin = self.similarity, self.margin
        if similarity is not None:
            mean = np.einsum("ga,agu->gu", weights, similarity[1:])
            similarity = np.stack([similarity[0], mean])
        if margin is not None:
            margin = np.stack([margin[0], np.einsum("ga,ag->g", weights, margin[1:])])
        return PromptScores(similarity, margin, self.subjects, self.references)


def collect_prompt_scores(
    evaluation: Evaluation, variants: Sequence[VariantScores], prompts: Sequence[Prompt]
) -> PromptScores:
    """Return the scores of the base model and the variants on the prompts that all of them were measured on.

    Without the base model's images there is nothing to compare with, and no prompt remains.
    """
    base = evaluation.base
    if base is None or not prompts:
        return PromptScores(None, None, (), evaluation.references)
    rows = [base, *variants]
    margin = np.stack(
        [
            evaluation.prompt_means(row, "clip_t", prompts)
            - evaluation.prompt_means(row, "clip_t_shuffled", prompts)
            for row in rows
        ]
    )
    has_margin = bool(np.isfinite(margin).any(1).all())
    similarity, has_similarity = np.empty((len(rows), len(prompts), 0)), False
    if evaluation.references and evaluation.references.units:
        similarity = np.stack([evaluation.reference_means(row, prompts) for row in rows])
        has_similarity = bool(np.isfinite(similarity).any((1, 2)).all())
    known = np.ones(len(prompts), bool)
    known &= np.isfinite(margin).all(0) if has_margin else True
    known &= np.isfinite(similarity).all((0, 2)) if has_similarity else True
    scores = PromptScores(
        similarity if has_similarity else None,
        margin if has_margin else None,
        tuple(evaluation.prompt_trigger(prompt) for prompt in prompts),
        evaluation.references,
    )
    return scores.select_prompts(np.flatnonzero(known).tolist())


def linear_estimates(scores: PromptScores) -> Estimates:
    """Return the means over prompts that fidelity and prompt adherence are ratios of, estimated together.

    First, if there are similarities to references, the gains of the A variants over the base model, and then
    that of true images: the references themselves, each compared with the others. Then, if measured, the
    margins of the A variants between the own and other prompts, and that of the base model. The uncertainty
    of the gains includes the choice of the references, if there are at least `MIN_UNITS`; all images are
    compared with the same ones, so that much of it cancels in ratios and differences.
    """
    columns = []
    if scores.similarity is not None:
        columns.append(_gains(scores, scores.similarity))
    if scores.margin is not None:
        columns.append(np.concatenate([scores.margin[1:], scores.margin[:1]]).T)
    rows = np.concatenate(columns, 1)  # (G, A + 1 or 2 A + 2)
    sources = [variation_of_means(rows, _strata(scores))]
    if scores.similarity is not None and num_reference_units(scores) >= MIN_UNITS:
        sources.append(_reference_variation(scores, rows.shape[1]))
    return Estimates(rows.mean(0), tuple(sources), scores.num_prompts)


def _gains(scores: PromptScores, similarity: FloatArray) -> FloatArray:
    """Return the gains over the base model by prompt (G, A + 1)."""
    assert scores.references is not None
    rows = np.empty((scores.num_prompts, len(similarity)))
    for subject, indices in _prompts_by_subject(scores).items():
        units = scores.references.fidelity_units(subject)
        means = similarity[:, indices][:, :, units].mean(2)  # (V, prompts)
        rows[indices, :-1] = (means[1:] - means[0]).T
        rows[indices, -1] = scores.references.ceiling(subject) - means[0]
    return rows


def mean_base_similarity(scores: PromptScores) -> float:
    """Return the similarity of the base model's images to the fidelity units, mean over the prompts."""
    assert scores.references is not None
    assert scores.similarity is not None
    total = 0.0
    for subject, indices in _prompts_by_subject(scores).items():
        units = scores.references.fidelity_units(subject)
        total += len(indices) * float(scores.similarity[0][np.ix_(indices, units)].mean())
    return total / scores.num_prompts


def num_reference_units(scores: PromptScores) -> int:
    """Return the number of different references of the subject that has the fewest."""
    if scores.references is None or not scores.references.units:
        return 0
    return min((len(scores.references.subject_units(s)) for s in set(scores.subjects)), default=0)


def _prompts_by_subject(scores: PromptScores) -> dict[str | None, list[int]]:
    groups: dict[str | None, list[int]] = {}
    for index, subject in enumerate(scores.subjects):
        groups.setdefault(subject, []).append(index)
    return groups


def _strata(scores: PromptScores) -> tuple[str | None, ...]:
    """Return the subjects, whose prompts are samples of their own, if each has several prompts."""
    sizes = [len(indices) for indices in _prompts_by_subject(scores).values()]
    return scores.subjects if sizes and min(sizes) > 1 else ()


def _reference_variation(scores: PromptScores, num_figures: int) -> Variation:
    """Return the variation of the figures by the choice of references, which matter for the gains only."""
    covariance, freedom = np.zeros((num_figures, num_figures)), 0.0
    for subject, indices in _prompts_by_subject(scores).items():
        variation = _subject_variation(scores, subject, indices)
        share, size = len(indices) / scores.num_prompts, len(variation.covariance)
        covariance[:size, :size] += share**2 * variation.covariance
        freedom += variation.freedom
    return Variation(covariance, freedom)


def _subject_variation(scores: PromptScores, subject: str | None, indices: list[int]) -> Variation:
    """Return the variation of the gains by the references of one subject.

    A gain is a mean over the h fidelity units: `columns`. The gain of true images is a mean over pairs of
    units, in which each of all u units matters a second time: `rows`. Leaving a unit out of a mean over pairs
    leaves it out of the means of the others, too, which hides a part of its deviation; the factors
    (n - 1) / (n - 2) restore it, as the jackknife of such a mean does. The deviations of units that were
    trained on are from their own mean, since they may be more similar.
    """
    references, similarity = scores.references, scores.similarity
    assert references is not None
    assert similarity is not None
    own, fidelity_units = references.subject_units(subject), set(references.fidelity_units(subject))
    counts = np.array([unit in fidelity_units for unit in own])
    pairs = references.similarity[np.ix_(own, own)].copy()
    np.fill_diagonal(pairs, 0)
    u, h = len(own), int(counts.sum())
    groups = [np.flatnonzero(counts), np.flatnonzero(~counts)] if h < u else [np.arange(u)]
    means = similarity[:, indices][:, :, own].mean(1)  # (V, u)
    columns = _centered(np.concatenate([means[1:] - means[0], -means[:1]]).T, groups)  # (u, A + 1)
    columns[:, -1] += _centered(pairs.sum(0)[:, None] / (u - 1), groups)[:, 0] * (u - 1) / (u - 2)
    rows = np.zeros_like(columns)
    as_row = _centered((pairs @ counts / (h - counts))[:, None], groups)[:, 0]
    rows[:, -1] = np.where(counts, as_row * (h - 1) / (h - 2), as_row)
    freedom = u - len(groups)
    both, cross = columns.T @ columns / freedom, columns.T @ rows / freedom
    covariance = both / h + (cross + cross.T) / u + rows.T @ rows / (freedom * u)
    covariance[-1, -1] -= _excess_variance(pairs, u, h)
    return Variation(_nearest_covariance(covariance), freedom)


def _excess_variance(pairs: FloatArray, u: int, h: int) -> float:
    """Return the part of the variance of the mean over pairs that is overestimated.

    A pair of units has a similarity of its own beside what each unit contributes. It belongs to both units'
    deviations, so that these count it several times. Its variance is the residual of an additive model; few
    units say little about it, so that for them less is taken off.
    """
    freedom = u * (u - 1) / 2 - u
    if freedom <= 0:
        return 0.0
    totals, values = pairs.sum(0), pairs[np.triu_indices(u, 1)]
    residual = ((values - values.mean()) ** 2).sum() - ((totals - totals.mean()) ** 2).sum() / (u - 2)
    variance = max(float(residual), 0.0) / freedom
    as_rows = 1 / (u - 2) if h == u else ((h - 1) / (h - 2) + (u - h - 1) / h) / (u - 2)
    counted = 1 / (h * (u - 2)) + 2 / (u * (u - 2)) + as_rows / u
    true = (2 * (h - 1) + u - h) / (h * (u - 1) ** 2)
    return variance * (counted - true) * (1 - MIN_UNITS / u)


def _nearest_covariance(matrix: FloatArray) -> FloatArray:
    """Return the matrix without its negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    result: FloatArray = (vectors * np.maximum(values, 0)) @ vectors.T
    return result


def _centered(values: FloatArray, groups: Sequence[NDArray[np.intp]]) -> FloatArray:
    result = values.astype(np.float64, copy=True)
    for indices in groups:
        result[indices] -= result[indices].mean(0)
    return result
