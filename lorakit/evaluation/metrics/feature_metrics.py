"""Metrics on features: unit vectors (N, D) to numbers, with numpy only.

Sources: CLIP-I and DINO-I, Ruiz et al. (DreamBooth, arXiv:2208.12242); Vendi score, Friedman and Dieng
(arXiv:2210.02410); CMMD, Jayasumana et al. (arXiv:2401.09603); CLIPScore, Hessel et al. (arXiv:2104.08718).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import student_quantile

Features = NDArray[np.float64]
COPY_QUANTILE = 0.95
MIN_IMAGES_FOR_QUANTILE = 40  # for an empirical 95th percentile
_NEARLY_ONE = 0.9999
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


@dataclass(frozen=True)
class NearestImages:
    """The most similar training image of each image: cosine (N,) and index (N,)."""

    similarity: NDArray[np.float64]
    index: NDArray[np.int64]


def nearest_training_image(images: Features, training: Features) -> NearestImages:
    """Find the most similar of the training images for each image."""
    similarity = images @ training.T
    return NearestImages(similarity.max(1), similarity.argmax(1))


@dataclass(frozen=True)
class CopyThreshold:
    """Similarity to a training image above which an image may be a copy.

    `expected_rate` of images that are not copies exceed it by chance.
    """

    similarity: float
    expected_rate: float


def copy_threshold(training: Features) -> CopyThreshold:
    """Return the 95th percentile of each training image's similarity to the most similar other one.

    A new image of the same kind exceeds it with probability `expected_rate`. From `MIN_IMAGES_FOR_QUANTILE`
    images on the threshold is an order statistic: among n + 1 images any two may be the most similar pair, so
    the largest of n values is exceeded with probability 2 / (n + 1), and each value above the threshold adds
    about 1 / (n + 1). Fewer images have no 95th percentile; the threshold is then the upper end of a normal
    prediction interval of the similarities' inverse tanh, whose rate is .05 + .5 / n or less in simulations.
    Raises ValueError for fewer than three images.
    """
    count = len(training)
    if count < 3:
        raise ValueError("the copy threshold needs at least three training images")
    similarity = training @ training.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.sort(similarity.max(1))
    if count >= MIN_IMAGES_FOR_QUANTILE:
        order = math.ceil(COPY_QUANTILE * (count + 1))
        return CopyThreshold(float(nearest[order - 1]), (count - order + 2) / (count + 1))
    values = np.arctanh(np.clip(nearest, -_NEARLY_ONE, _NEARLY_ONE))
    margin = student_quantile(COPY_QUANTILE, count - 1) * math.sqrt(1 + 1 / count)
    threshold = math.tanh(float(values.mean() + margin * values.std(ddof=1)))
    return CopyThreshold(threshold, 1 - COPY_QUANTILE + 0.5 / count)
