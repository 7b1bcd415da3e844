"""Copies of training images: decided image by image, with the training image that each repeats.

An image is a copy if it is much nearer to one training image than distinct training images are to each other,
and much nearer to that one than to any other. Both are asked of the pixels of small copies, which say that it
is the same image, and of the features of the image encoder, where the pixels agree less because a copy was
cropped. Near duplicates among the training images count as one, so that a duplicate hides no copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MIN_TRAINING_UNITS = 3  # distinct training images; fewer have no typical distance
SSCD_COPY_SIMILARITY = 0.5  # from which a pair counts as a copy (Pizzi et al., arXiv:2202.10261)
MAX_SSCD_RATIO = 0.5  # of the typical distance by SSCD, for bursts of photos that SSCD takes for copies


@dataclass(frozen=True)
class CopyLimits:
    """Largest distances of a copy: pixels as 1 - correlation; the others as shares of the typical distance
    and of that to the second-nearest training image.
    """

    pixels: float
    pixel_ratio: float
    feature_ratio: float | None = None
    """None if features are not asked."""


SAME_PIXELS = CopyLimits(0.03, 0.3)
CROPPED = CopyLimits(0.12, 0.4, 0.6)
"""A copy is within one of the two. Measured with the embedded CLIP on striped images of the shape world (5,
12 and 20 references): re-encoded, mirrored, darker or brighter copies are recognized in 100 %, cropped by 5 %
in 97 %, by 10 % in 94 %, and mirrored, cropped and re-encoded at once in 71 %; of fresh images, 1.2 % are
taken for copies, most of which repeat a training image in all that a caption can say."""


@dataclass(frozen=True)
class TrainingMatch:
    """The training image that an image resembles most, and how much more than any other one."""

    image: str
    similarity: float
    """Cosine with the image's unit of near duplicates, by the image encoder."""
    agreement: float
    """Correlation of the pixels, also mirrored and cropped."""
    second_similarity: float
    second_agreement: float
    """The same with the most similar other unit."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainingMatch:
        """Read the values that `to_json` writes."""
        return cls(**value)


@dataclass(frozen=True)
class CopyScale:
    """The similarities of distinct training images: the median over them of that to the nearest other one."""

    num_units: int
    similarity: float
    agreement: float
    sscd: float | None = None

    @property
    def copy_similarity(self) -> float:
        """The cosine from which the features of an image are those of a cropped copy."""
        return 1 - (CROPPED.feature_ratio or 1) * (1 - self.similarity)

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CopyScale:
        """Read the values that `to_json` writes."""
        return cls(**value)


def is_copy(match: TrainingMatch, scale: CopyScale, sscd: float | None = None) -> bool:
    """Return True if an image is a copy of the training image that it matches; `sscd` is its SSCD score."""
    if sscd is not None and sscd > SSCD_COPY_SIMILARITY:
        typical = 1 - (scale.sscd if scale.sscd is not None else 0.0)
        if scale.sscd is None or scale.sscd < SSCD_COPY_SIMILARITY or 1 - sscd < MAX_SSCD_RATIO * typical:
            return True
    pixels = 1 - match.agreement
    pixel_unit = min(1 - scale.agreement, 1 - match.second_agreement)
    feature_unit = min(1 - scale.similarity, 1 - match.second_similarity)
    for limits in (SAME_PIXELS, CROPPED):
        near_features = (
            limits.feature_ratio is None or 1 - match.similarity <= limits.feature_ratio * feature_unit
        )
        if pixels <= limits.pixels and pixels <= limits.pixel_ratio * pixel_unit and near_features:
            return True
    return False
