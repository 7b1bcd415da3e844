"""Small copies and statistics of images, measured and cached like the features of an image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.evaluation.feature_cache import FrameSource, cached_features
from lorakit.evaluation.metrics.image_statistics import MEASURED_SIDE, STATISTICS, image_statistics
from lorakit.imaging import thumbnails

if TYPE_CHECKING:
    from PIL import Image

_NUM_STATISTICS = len(STATISTICS)


@dataclass(frozen=True)
class ImagePixels:
    """Small copies, aspects and statistics of N images; of a video the mean over its frames."""

    thumbnails: NDArray[np.float32]  # (N, SIDE, SIDE, 3)
    aspects: NDArray[np.float32]  # (N,), width over height
    statistics: NDArray[np.float64]  # (N, 3)

    def agreement(self, references: ImagePixels) -> NDArray[np.float32]:
        """Return the correlation (N, R) of the images with the best window of each reference."""
        return thumbnails.agreement(self.thumbnails, self.aspects, references.thumbnails, references.aspects)

    def rows(self, rows: Sequence[int]) -> ImagePixels:
        """Return the images with these indices."""
        index = list(rows)
        return ImagePixels(self.thumbnails[index], self.aspects[index], self.statistics[index])


class PixelEncoder:
    """Measures images as vectors: statistics, logarithm of the aspect, thumbnail."""

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return one vector for each image, float32."""
        rows = [
            np.concatenate(
                [
                    image_statistics(image),
                    [np.log(image.width / image.height)],
                    thumbnails.thumbnail(image).ravel(),
                ]
            )
            for image in images
        ]
        return torch.from_numpy(np.array(rows, np.float32))

    def describe(self) -> dict[str, Any]:
        """Return the settings that the vectors depend on, as JSON."""
        return {
            "measurement": "pixels",
            "version": 1,
            "thumbnail": thumbnails.SIDE,
            "statistics": list(STATISTICS),
            "measured_side": MEASURED_SIDE,
        }


def measure_pixels(sources: Sequence[FrameSource], label: str, quiet: bool = False) -> ImagePixels:
    """Measure images, from the cache if they were measured before."""
    vectors = cached_features(PixelEncoder(), sources, f"{label}: pixels", quiet)
    return unpack_pixels(vectors)


def unpack_pixels(vectors: NDArray[np.float64]) -> ImagePixels:
    """Return the parts of the vectors (N, ...) of `PixelEncoder`."""
    small = vectors[:, _NUM_STATISTICS + 1 :].reshape(len(vectors), thumbnails.SIDE, thumbnails.SIDE, 3)
    aspects = np.exp(vectors[:, _NUM_STATISTICS]).astype(np.float32)
    return ImagePixels(small.astype(np.float32), aspects, vectors[:, :_NUM_STATISTICS])
