"""The images that an adapter was trained on, and for each other image the one that it resembles most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorakit.core import rng
from lorakit.evaluation.copies import MIN_TRAINING_UNITS, CopyScale, TrainingMatch
from lorakit.evaluation.metrics.pixels import ImagePixels
from lorakit.evaluation.references import group_near_duplicates, median_nearest

MAX_COMPARED = 1000  # training images whose pixels are compared; of more, those nearest by features
MAX_SCALED = 300  # training images that the typical distance is measured with
MIN_PIXEL_LEAD = 0.8  # agreement from which the pixels say which training image is nearest


class TrainingImages:
    """The images that an adapter was trained on, in units of near duplicates."""

    def __init__(
        self,
        names: Sequence[str],
        features: NDArray[np.float64],
        pixels: ImagePixels,
        descriptors: NDArray[np.float64] | None = None,
    ) -> None:
        self.names, self.features, self.pixels = list(names), features, pixels
        self.descriptors = descriptors
        groups = group_near_duplicates(features, pixel_agreement(pixels, pixels, features @ features.T))
        self.unit_of = np.empty(len(self.names), np.int64)
        for unit, rows in enumerate(groups):
            self.unit_of[rows] = unit
        self.num_units = len(groups)
        self.scale = self._measure_scale() if self.num_units >= MIN_TRAINING_UNITS else None

    def _measure_scale(self) -> CopyScale:
        """Measure the typical similarity of distinct images with the first image of each unit."""
        first = np.unique(self.unit_of, return_index=True)[1]
        if len(first) > MAX_SCALED:
            first = np.array(sorted(first, key=lambda row: rng.derive_seed(0, "scale", self.names[row])))
            first = first[:MAX_SCALED]
        chosen, some = self.features[first], self.pixels.rows(first.tolist())
        sscd = None
        if self.descriptors is not None:
            sscd = median_nearest(self.descriptors[first] @ self.descriptors[first].T)
        return CopyScale(
            self.num_units,
            median_nearest(chosen @ chosen.T),
            median_nearest(some.agreement(some).astype(np.float64)),
            sscd,
        )

    def compare(self, features: NDArray[np.float64], pixels: ImagePixels) -> list[TrainingMatch]:
        """Return the match of each image (N, D); with a single unit there is no second one, at -1."""
        similarity = features @ self.features.T  # (N, R)
        agreement = pixel_agreement(pixels, self.pixels, similarity)
        by_unit = [self._unit_maxima(table) for table in (similarity, agreement)]
        matches = []
        for row in range(len(features)):
            likeness, pixel_likeness = by_unit[0][row], by_unit[1][row]
            use_pixels = pixel_likeness.max() >= MIN_PIXEL_LEAD
            leading = pixel_likeness if use_pixels else likeness
            unit = int(leading.argmax())
            others = np.arange(self.num_units) != unit
            own = np.flatnonzero(self.unit_of == unit)
            table = agreement if use_pixels else similarity
            matches.append(
                TrainingMatch(
                    self.names[own[table[row, own].round(5).argmax()]],  # the first of equal ones
                    float(likeness[unit]),
                    float(pixel_likeness[unit]),
                    float(likeness[others].max(initial=-1)),
                    float(pixel_likeness[others].max(initial=-1)),
                )
            )
        return matches

    def sscd_similarity(self, descriptors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest SSCD similarity (N,) of images (N, D) with a training image."""
        if self.descriptors is None:
            raise ValueError("the training images were not measured by SSCD")
        nearest: NDArray[np.float64] = (descriptors @ self.descriptors.T).max(1)
        return nearest

    def _unit_maxima(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest value in each unit (N, U) of a table (N, R)."""
        result = np.full((len(table), self.num_units), -np.inf)
        for row, unit in enumerate(self.unit_of):
            np.maximum(result[:, unit], table[:, row], out=result[:, unit])
        return result


def pixel_agreement(
    images: ImagePixels, training: ImagePixels, similarity: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the agreement (N, R); -1 with training images that are too many and unlike by features."""
    count = len(training.aspects)
    if count <= MAX_COMPARED:
        return images.agreement(training).astype(np.float64)
    nearest = np.sort(np.argsort(-similarity.max(0), kind="stable")[:MAX_COMPARED])
    result = np.full((len(images.aspects), count), -1.0)
    result[:, nearest] = images.agreement(training.rows(nearest.tolist()))
    return result
