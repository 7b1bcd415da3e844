"""The metrics' arithmetic on features: unit vectors (N, D) in, numbers out. numpy only.

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


def fidelity(pictures: Features, references: Features) -> NDArray[np.float64]:
    """Mean cosine of each picture (N,) with all references: CLIP-I or DINO-I, by whose features they are."""
    return pictures @ references.mean(0)


def leave_one_out_fidelity(references: Features) -> NDArray[np.float64]:
    """Mean cosine of each reference (R,) with the other references: what fidelity could reach at most."""
    if len(references) < 2:
        raise ValueError("leaving one out needs at least two references")
    return (references @ references.sum(0) - 1) / (len(references) - 1)


def drift(pictures: Features, base: Features) -> NDArray[np.float64]:
    """1 - cosine of each picture (N,) with the base's from the same prompt and noise."""
    return 1 - (pictures * base).sum(1)


def pairwise_diversity(pictures: Features) -> float:
    """1 - mean cosine over all pairs: how different the seeds of a prompt are. NaN for a single picture."""
    count = len(pictures)
    if count < 2:
        return math.nan
    total = pictures.sum(0)
    return float(1 - (total @ total - (pictures * pictures).sum()) / (count * (count - 1)))


def between_group_distance(pictures: Features, groups: NDArray[np.int64]) -> float:
    """1 - mean cosine over pairs of different groups (N,): how far prompts lie apart. NaN for one group."""
    apart = groups[:, None] != groups[None, :]
    return float(1 - (pictures @ pictures.T)[apart].mean()) if apart.any() else math.nan


def vendi_score(pictures: Features) -> float:
    """The effective number of different pictures, from 1 to N: exp of the entropy of K / n's eigenvalues."""
    # K and the covariance have the same eigenvalues but for zeros: take the smaller matrix.
    matrix = pictures @ pictures.T if len(pictures) <= pictures.shape[1] else pictures.T @ pictures
    values = np.linalg.eigvalsh(matrix / len(pictures))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def cmmd(pictures: Features, references: Features) -> float:
    """1000 x squared maximum mean discrepancy under a Gaussian kernel of width 10 (V-statistic)."""

    def kernel(a: Features, b: Features) -> float:
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * a @ b.T
        return float(np.exp(-squared / (2 * CMMD_SIGMA**2)).mean())

    within = kernel(pictures, pictures) + kernel(references, references)
    return CMMD_SCALE * (within - 2 * kernel(pictures, references))


def clipscore(cosine: NDArray[np.float64]) -> NDArray[np.float64]:
    """2.5 max(cosine, 0), of a ViT-B/32 whose texts begin with `CLIPSCORE_PREFIX`."""
    return CLIPSCORE_WEIGHT * np.maximum(cosine, 0)


def shuffled_prompt_similarity(
    similarity: NDArray[np.float64], own: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The floor of adherence: each picture's mean cosine with the *other* prompts' texts (N,).

    `similarity` (N, P) holds pictures against all texts, `own` (N,) each picture's prompt. NaN for one text.
    """
    count = similarity.shape[1]
    if count < 2:
        return np.full(len(similarity), math.nan)
    return (similarity.sum(1) - similarity[np.arange(len(own)), own]) / (count - 1)


def nearest_training_image(
    pictures: Features, training: Features
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosine with, and index of, the training image that each picture (N,) resembles most."""
    similarity = pictures @ training.T
    return similarity.max(1), similarity.argmax(1)


@dataclass(frozen=True)
class CopyLimit:
    """A picture nearer than `similarity` to some training image is suspect; `rate` of honest ones are."""

    similarity: float
    rate: float


def copy_limit(training: Features) -> CopyLimit:
    """The 95th percentile of how near training images are to each other, each left out in turn.

    An honest picture, one more of the same kind, exceeds it with probability `rate`. From `ENOUGH_IMAGES` on
    the limit is an order statistic: of n + 1 images the two most alike are any two, so the largest of n is
    exceeded with 2 / (n + 1), and each value above the limit adds about 1 / (n + 1). Fewer images have no
    95th percentile; there it is the upper end of a normal prediction interval of the similarities' inverse
    tanh, whose rate was found by simulation to be about .05 + .5 / n or less.
    """
    count = len(training)
    if count < 3:
        raise ValueError("the copy limit needs at least three training images")
    similarity = training @ training.T
    np.fill_diagonal(similarity, -np.inf)
    near = np.sort(similarity.max(1))
    if count >= MIN_IMAGES_FOR_QUANTILE:
        order = math.ceil(COPY_QUANTILE * (count + 1))
        return CopyLimit(float(near[order - 1]), (count - order + 2) / (count + 1))
    values = np.arctanh(np.clip(near, -_NEARLY_ONE, _NEARLY_ONE))
    reach = student_quantile(COPY_QUANTILE, count - 1) * math.sqrt(1 + 1 / count)
    limit = math.tanh(float(values.mean() + reach * values.std(ddof=1)))
    return CopyLimit(limit, 1 - COPY_QUANTILE + 0.5 / count)
