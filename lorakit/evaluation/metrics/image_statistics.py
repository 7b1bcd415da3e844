"""Statistics of an image's colors and detail, which show images that an adapter has over-cooked.

All are measured on a copy of at most 256 pixels a side, so that images of different sizes compare.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

StatisticName = Literal["saturation", "contrast", "detail"]
STATISTICS: tuple[StatisticName, ...] = ("saturation", "contrast", "detail")
MEASURED_SIDE = 256
_SMALLEST = 1 / 256  # one level of brightness, added before a logarithm


def image_statistics(image: Image.Image) -> NDArray[np.float64]:
    """Return saturation, contrast and detail (3,).

    Saturation is the mean difference of a pixel's largest and smallest channel, 0 to 1. Contrast is the
    standard deviation of the lightness, and detail the rms difference of the lightness from its mean over
    3 x 3 pixels; both are natural logarithms, because twice as much looks like one step.
    """
    small = image.convert("RGB")
    small.thumbnail((MEASURED_SIDE, MEASURED_SIDE), Image.Resampling.BOX, reducing_gap=3.0)
    pixels = np.asarray(small, np.float64) / 255
    lightness = pixels @ np.array([0.299, 0.587, 0.114])
    padded = np.pad(lightness, 1, mode="edge")
    height, width = lightness.shape
    neighbors = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    detail = float(np.sqrt(np.mean((lightness - np.mean(neighbors, axis=0)) ** 2)))
    return np.array(
        [
            float((pixels.max(-1) - pixels.min(-1)).mean()),
            float(np.log(lightness.std() + _SMALLEST)),
            float(np.log(detail + _SMALLEST)),
        ]
    )
