"""Measures of a dataset by CLIP: captions that belong to other images, and two subjects under one trigger.

Both work on unit vectors of the training images and of their captions, in which class nouns replace the
trigger words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import bootstrap
from lorakit.evaluation.run_facts import CaptionMatch, SubjectGroups

FloatArray = NDArray[np.float64]
MIN_CAPTIONS = 5  # distinct captions; fewer say little about the pairing
MIN_IMAGES = 10  # fewer fall into two groups too easily
MIN_SEPARATION, SMALL_SAMPLE = 0.24, 0.6  # silhouette of two subjects: the first plus the second / images
_RESAMPLES = 2_000
_NUM_WORST = 5
_STARTS, _ITERATIONS = 16, 20  # of 2-means


def measure_caption_match(
    images: FloatArray, captions: FloatArray, texts: Sequence[str], names: Sequence[str]
) -> CaptionMatch | None:
    """Compare each image (N, D) with its own caption (N, D) and with those of the other images.

    Returns None for fewer than `MIN_CAPTIONS` distinct texts, and for captions that are all alike to CLIP.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < MIN_CAPTIONS:
        return None
    columns = [texts.index(text) for text in distinct]
    own = np.array([distinct.index(text) for text in texts])
    similarity = images @ captions[columns].T  # (N, C)
    fit = similarity - similarity.mean(0)  # less what a caption has in common with every image
    fit -= fit.mean(1, keepdims=True)
    margins = fit[np.arange(len(own)), own] * len(distinct) / (len(distinct) - 1)
    reaches = fit.max(1) * len(distinct) / (len(distinct) - 1)
    if not reaches.mean() > 1e-6:
        return None
    table = np.stack([margins, reaches], 1)
    share = bootstrap(table, lambda means: means[..., 0] / means[..., 1], n=_RESAMPLES)
    order: list[int] = np.argsort(margins - reaches, kind="stable").tolist()
    return CaptionMatch(
        share,
        len(distinct),
        float(margins.mean()),
        float(reaches.mean()),
        tuple(names[row] for row in order[:_NUM_WORST] if margins[row] < reaches[row]),
    )


def find_subject_groups(
    trigger: str | None,
    images: FloatArray,
    captions: FloatArray,
    names: Sequence[str],
    folders: Sequence[str],
) -> SubjectGroups | None:
    """Return two groups of images (N, D) of one trigger word that differ in what their captions do not say.

    Captions (N, D) explain the scene; what remains of one subject is one cloud, of two subjects two. 2-means
    separates any cloud a little, and a small one more: the limits lie above what it reaches in images of one
    subject (measured on 24 datasets of 12 and 24 images: at most .27 and .20; of two subjects .26 to .34).
    """
    if len(images) < MIN_IMAGES:
        return None
    rest = _unexplained_part(images, captions)
    labels = _two_means(rest)
    separation = _silhouette(rest, labels)
    rows = [np.flatnonzero(labels == group) for group in (0, 1)]
    if min(map(len, rows)) < len(labels) / 4 or not separation > MIN_SEPARATION + SMALL_SAMPLE / len(labels):
        return None
    members = [tuple(names[row] for row in _by_typicality(rest, own)) for own in rows]
    own_folders = [{folders[row] for row in own.tolist()} for own in rows]
    is_by_folder = all(len(one) == 1 for one in own_folders) and own_folders[0] != own_folders[1]
    return SubjectGroups(
        trigger,
        (members[0], members[1]),
        separation,
        (own_folders[0].pop(), own_folders[1].pop()) if is_by_folder else None,
    )


def _unexplained_part(images: FloatArray, captions: FloatArray) -> FloatArray:
    """Return the images' vectors less the multiple of the captions' that explains most of them."""
    rest, texts = images - images.mean(0), captions - captions.mean(0)
    scale = float((texts * texts).sum())
    return rest - float((texts * rest).sum()) / scale * texts if scale > 1e-9 else rest


def _two_means(points: FloatArray) -> NDArray[np.int64]:
    """Return the labels (N,) of the best of some runs of 2-means."""
    generator = np.random.default_rng(0)
    best, lowest = np.zeros(len(points), dtype=np.int64), np.inf
    for _ in range(_STARTS):
        centres = points[generator.choice(len(points), 2, replace=False)]
        for _ in range(_ITERATIONS):
            labels = _squared_distances(points, centres).argmin(1)
            if labels.min() == labels.max():
                break
            centres = np.stack([points[labels == group].mean(0) for group in (0, 1)])
        cost = float(_squared_distances(points, centres).min(1).sum())
        if labels.min() != labels.max() and cost < lowest:
            best, lowest = labels, cost
    return best


def _squared_distances(points: FloatArray, others: FloatArray) -> FloatArray:
    products: FloatArray = points @ others.T
    return (points**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * products


def _silhouette(points: FloatArray, labels: NDArray[np.int64]) -> float:
    """Return the mean silhouette (Rousseeuw, 1987) of two groups."""
    distances = np.sqrt(np.maximum(_squared_distances(points, points), 0))
    same = labels[:, None] == labels[None]
    counts = same.sum(1)
    if counts.min() < 2 or counts.max() == len(labels):
        return 0.0
    inside = (distances * same).sum(1) / (counts - 1)
    outside = (distances * ~same).sum(1) / (len(labels) - counts)
    return float(((outside - inside) / np.maximum(outside, inside)).mean())


def _by_typicality(points: FloatArray, rows: NDArray[np.int64]) -> list[int]:
    """Return the rows of a group, the nearest to its centre first."""
    distances = ((points[rows] - points[rows].mean(0)) ** 2).sum(1)
    return [int(row) for row in rows[np.argsort(distances, kind="stable")]]
