"""Metrics on features: unit vectors (N, D) to numbers, with numpy only.

Sources: CLIP-I and DINO-I, Ruiz et al. (DreamBooth, arXiv:2208.12242); Vendi score, Friedman and Dieng
(arXiv:2210.02410); CMMD, Jayasumana et al. (arXiv:2401.09603); CLIPScore, Hessel et al. (arXiv:2104.08718).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
CLIPSCORE_WEIGHT, CLIPSCORE_PREFIX = 2.5, "A photo depicts "


def fidelity(images: Features, references: Features) -> NDArray[np.float64]:
    """Return the mean cosine of each image (N,) with all references: CLIP-I or DINO-I by the encoder."""
    return images @ references.mean(0)


def drift(images: Features, base: Features) -> NDArray[np.float64]:
    """Return 1 - cosine of each image (N,) with the base model's image of the same prompt and noise."""
    return 1 - (images * base).sum(1)


def pairwise_diversity(images: Features) -> float:
    """Return 1 - mean cosine over all pairs, the diversity of a prompt's seeds; NaN for a single image."""
    count = len(images)
    if count < 2:
        return math.nan
    total = images.sum(0)
    return float(1 - (total @ total - (images * images).sum()) / (count * (count - 1)))


def between_group_distance(images: Features, groups: NDArray[np.int64]) -> float:
    """Return 1 - mean cosine over pairs of different groups (N,), here prompts; NaN for one group."""
    different = groups[:, None] != groups[None, :]
    return float(1 - (images @ images.T)[different].mean()) if different.any() else math.nan


def vendi_score(images: Features) -> float:
    """Return the effective number of different images, 1 to N: exp of the entropy of K / N's eigenvalues."""
    # K and the covariance matrix differ only in eigenvalues that are zero: use the smaller one.
    matrix = images @ images.T if len(images) <= images.shape[1] else images.T @ images
    values = np.linalg.eigvalsh(matrix / len(images))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def cmmd(images: Features, references: Features) -> float:
    """Return 1000 x the squared maximum mean discrepancy, Gaussian kernel of width 10 (V-statistic)."""

    def kernel(a: Features, b: Features) -> float:
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T
        return float(np.exp(-squared / (2 * CMMD_SIGMA**2)).mean())

    within = kernel(images, images) + kernel(references, references)
    return CMMD_SCALE * (within - 2 * kernel(images, references))


def clipscore(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 2.5 max(cosine, 0), for cosines of a ViT-B/32 with texts prefixed by `CLIPSCORE_PREFIX`."""
    return CLIPSCORE_WEIGHT * np.maximum(cosine, 0)


def shuffled_prompt_similarity(
    similarity: NDArray[np.float64], own: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return each image's mean cosine with the texts of the *other* prompts (N,): no prompt adherence.

    `similarity` (N, P) has the cosines of images and texts, `own` (N,) the column of each image's prompt. NaN
    if there is only one text.
    """
    count = similarity.shape[1]
    if count < 2:
        return np.full(len(similarity), math.nan)
    return (similarity.sum(1) - similarity[np.arange(len(own)), own]) / (count - 1)
