"""Skeletons of persons in the colors of OpenPose, as control networks for poses were trained with them."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorakit.imaging.opencv import load_opencv

# The joints of OpenPose; of a color each, with a distance of 20 degrees in hue.
JOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
COLORS = tuple(
    tuple(round(255 * part) for part in colorsys.hsv_to_rgb(index / len(JOINTS), 1, 1))
    for index in range(len(JOINTS))
)
# A limb has the color of its place in this list.
LIMBS = (
    ("neck", "right_shoulder"), ("neck", "left_shoulder"),
    ("right_shoulder", "right_elbow"), ("right_elbow", "right_wrist"),
    ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"),
    ("neck", "right_hip"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
    ("neck", "left_hip"), ("left_hip", "left_knee"), ("left_knee", "left_ankle"),
    ("neck", "nose"), ("nose", "right_eye"), ("right_eye", "right_ear"),
    ("nose", "left_eye"), ("left_eye", "left_ear"),
)  # fmt: skip
RADIUS = 4  # pixels: of a joint, and half the width of a limb
_LIMB_BRIGHTNESS = 0.6

Points = dict[str, tuple[float, float]]


def with_neck(points: Points) -> Points:
    """Return the points with the neck, in the middle of the shoulders if both are there."""
    if "left_shoulder" not in points or "right_shoulder" not in points:
        return points
    left, right = points["left_shoulder"], points["right_shoulder"]
    return points | {"neck": ((left[0] + right[0]) / 2, (left[1] + right[1]) / 2)}


def draw_skeletons(size: tuple[int, int], persons: Sequence[Points]) -> Image.Image:
    """Return the skeletons on black, RGB, of `size` (width, height); joints that are missing are left out."""
    cv2 = load_opencv("--type pose")
    canvas: NDArray[np.uint8] = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for color, (first, second) in zip(COLORS, LIMBS, strict=False):
        for points in persons:
            if first not in points or second not in points:
                continue
            (x0, y0), (x1, y1) = points[first], points[second]
            middle = round((x0 + x1) / 2), round((y0 + y1) / 2)
            axes = round(math.hypot(x1 - x0, y1 - y0) / 2), RADIUS
            angle = round(math.degrees(math.atan2(y1 - y0, x1 - x0)))
            outline = cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1)
            cv2.fillConvexPoly(canvas, outline, [int(part * _LIMB_BRIGHTNESS) for part in color])
    for color, joint in zip(COLORS, JOINTS, strict=True):
        for points in persons:
            if joint in points:
                x, y = points[joint]
                cv2.circle(canvas, (round(x), round(y)), RADIUS, color, thickness=-1)
    return Image.fromarray(canvas)
