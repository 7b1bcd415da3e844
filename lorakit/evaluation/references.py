"""Reference images of the subjects, in units of near duplicates, and their similarities to each other.

Fidelity compares an image with references of its subject. If enough of them were held out from the training
only these count, because similarity to images that were trained on rewards memorization. Copies of one photo
are one unit, so that a duplicate has no more weight than any other image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.core import rng
from lorakit.imaging.near_duplicates import connected_groups

FloatArray = NDArray[np.float64]
MIN_HELD_OUT_UNITS = 3  # fewer held-out images are too few to measure fidelity with
MAX_UNITS = 24  # in the table of one subject; more make intervals hardly narrower
NEAR_DUPLICATE_SIMILARITY = 0.98  # cosine from which two references count as one image, without pixels
SAME_IMAGE_AGREEMENT = 0.97  # correlation of pixels from which two references are one image
CROPPED_AGREEMENT, MAX_PIXEL_RATIO, MAX_FEATURE_RATIO = 0.88, 0.4, 0.6
"""The same for a crop of another reference: it must also be nearer than other images are to each other, by
pixels and by features (the limits of `copies.py`)."""


@dataclass(frozen=True)
class ReferenceUnit:
    """Reference images that are near duplicates of each other; most units have one image."""

    names: tuple[str, ...]
    trained_on: bool
    """True if the adapter was trained on one of them."""
    trigger: str | None = None
    """The trigger word of the subject that they show; None if all references show one subject."""


@dataclass(frozen=True)
class ReferenceTable:
    """Units of reference images, and the mean cosine (U, U) between the images of two units."""

    units: tuple[ReferenceUnit, ...]
    similarity: FloatArray

    @property
    def triggers(self) -> list[str | None]:
        """The subjects that have references, each once."""
        return list(dict.fromkeys(unit.trigger for unit in self.units))

    def subject_units(self, trigger: str | None) -> list[int]:
        """Return the units of the subject with a trigger; all units if it has none of its own."""
        own = [index for index, unit in enumerate(self.units) if unit.trigger == trigger]
        return own or list(range(len(self.units)))

    def fidelity_units(self, trigger: str | None) -> list[int]:
        """Return the units that fidelity to a subject is measured with: the held-out ones if there are
        enough, else all.
        """
        own = self.subject_units(trigger)
        held_out = [index for index in own if not self.units[index].trained_on]
        return held_out if len(held_out) >= MIN_HELD_OUT_UNITS else own

    def uses_held_out(self, trigger: str | None) -> bool:
        """Return True if fidelity to a subject is measured with held-out images only."""
        units = self.fidelity_units(trigger)
        return bool(units) and not any(self.units[index].trained_on for index in units)

    def ceiling(self, trigger: str | None, left_out: int | None = None) -> float:
        """Return the fidelity of true images: the mean cosine of each other unit with the fidelity units.

        `left_out` is a unit to ignore (jackknife). NaN if fewer than two units remain.
        """
        own = [index for index in self.subject_units(trigger) if index != left_out]
        columns = [index for index in self.fidelity_units(trigger) if index != left_out]
        pairs = [self.similarity[row, column] for row in own for column in columns if row != column]
        return float(np.mean(pairs)) if pairs else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        units = [
            {"names": list(unit.names), "trained_on": unit.trained_on, "trigger": unit.trigger}
            for unit in self.units
        ]
        return {"units": units, "similarity": self.similarity.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ReferenceTable:
        """Read the values that `to_json` writes."""
        units = tuple(
            ReferenceUnit(tuple(unit["names"]), unit["trained_on"], unit["trigger"])
            for unit in value["units"]
        )
        return cls(units, np.array(value["similarity"], dtype=np.float64).reshape(len(units), len(units)))


def group_near_duplicates(features: FloatArray, agreement: FloatArray | None = None) -> list[list[int]]:
    """Return the rows of unit vectors (R, D) in groups of near duplicates.

    `agreement` (R, R) is the correlation of the images' pixels with the best window of each other image.
    Without it only features of almost the same direction join two images.
    """
    similarity = features @ features.T
    if agreement is None:
        return _connected(similarity > NEAR_DUPLICATE_SIMILARITY)
    agreement = np.maximum(agreement, agreement.T)  # a crop has a window in the whole image, not the reverse
    same = agreement >= SAME_IMAGE_AGREEMENT
    groups = _connected(same)
    if len(groups) < 3:
        return groups
    first = [rows[0] for rows in groups]
    limits = [
        ratio * (1 - median_nearest(table[np.ix_(first, first)]))
        for ratio, table in ((MAX_PIXEL_RATIO, agreement), (MAX_FEATURE_RATIO, similarity))
    ]
    cropped = (agreement >= CROPPED_AGREEMENT) & (1 - agreement <= limits[0]) & (1 - similarity <= limits[1])
    return _connected(same | cropped)


def _connected(is_pair: NDArray[np.bool_]) -> list[list[int]]:
    rows, columns = np.nonzero(np.triu(is_pair, 1))
    return connected_groups(len(is_pair), zip(rows.tolist(), columns.tolist(), strict=True))


def median_nearest(table: FloatArray) -> float:
    """Return the median over images of the value (U, U) with the nearest other one."""
    others = np.where(np.eye(len(table), dtype=bool), -np.inf, table)
    return float(np.median(others.max(1)))


@dataclass(frozen=True)
class ReferenceUnits:
    """The units of the references, and the rows of their images among all references."""

    units: list[ReferenceUnit]
    rows: list[list[int]]

    def similarity(self, features: FloatArray, references: FloatArray) -> FloatArray:
        """Return the mean cosine (N, U) of unit vectors (N, D) with the images (R, D) of each unit."""
        return np.stack([features @ references[rows].mean(0) for rows in self.rows], 1)

    def table(self, references: FloatArray) -> ReferenceTable:
        """Return the table of the units' cosines with each other by the features (R, D) of all references."""
        unit_means = np.stack([references[rows].mean(0) for rows in self.rows])
        return ReferenceTable(tuple(self.units), unit_means @ unit_means.T)


def reference_units(
    features: FloatArray,
    names: Sequence[str],
    trained_on: Sequence[bool],
    triggers: Sequence[str | None] = (),
    agreement: FloatArray | None = None,
) -> ReferenceUnits:
    """Group references (R, D) of each subject into units, held-out ones first; at most `MAX_UNITS` a subject.

    `agreement` (R, R) is the correlation of their pixels. The units that remain of many are chosen by keyed
    numbers of their names, the same every time.
    """
    subject_of = list(triggers) or [None] * len(names)
    units: list[ReferenceUnit] = []
    unit_rows: list[list[int]] = []
    for subject in dict.fromkeys(subject_of):
        own = [row for row, trigger in enumerate(subject_of) if trigger == subject]
        pixels = None if agreement is None else agreement[np.ix_(own, own)]
        groups = [[own[index] for index in group] for group in group_near_duplicates(features[own], pixels)]
        chosen = sorted(groups, key=lambda rows: (any(trained_on[row] for row in rows), _order(names, rows)))
        for rows in sorted(chosen[:MAX_UNITS]):
            units.append(
                ReferenceUnit(
                    tuple(names[row] for row in rows), any(trained_on[row] for row in rows), subject
                )
            )
            unit_rows.append(rows)
    return ReferenceUnits(units, unit_rows)


def _order(names: Sequence[str], rows: Sequence[int]) -> int:
    return min(rng.derive_seed(0, "reference unit", names[row]) for row in rows)
