"""The variants on a page: which ones, their names in anchors, their badges, and their image files."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from lorakit.core.errors import LorakitError
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.imaging.decode import decode_image
from lorakit.reports import Badge, EmbeddedImage, embed_image

MAX_COLUMNS = 16  # variants in the viewer


class SampleImages:
    """Opens an evaluation's images; the paths are relative to `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def embed(self, file: str, alt: str, width: int, stored_width: int | None = None) -> EmbeddedImage | None:
        """Return an image, which a click enlarges if `stored_width` is set; None if it is missing."""
        image = self.open(file)
        return embed_image(image, alt=alt, width=width, zoom_width=stored_width) if image else None

    def open(self, file: str) -> Image.Image | None:
        """Return the image, or None if it cannot be read."""
        try:
            return decode_image(Path(os.path.normpath(self.root / file)))  # `root` may not exist yet
        except (OSError, LorakitError):
            return None


def variant_key(evaluation: Evaluation, variant: VariantScores) -> str:
    """Return the name of a variant in anchors and style rules, whatever characters its own name has."""
    return f"v{next(i for i, one in enumerate(evaluation.variants) if one is variant)}"


def variant_badges(variant: VariantScores, selection: Selection | None) -> list[Badge]:
    """Return what is special about a variant: selected, its alarms, another origin, stopped early."""
    badges = [Badge("selected", "good")] if selection and selection.variant is variant else []
    for candidate in selection.candidates if selection else ():
        if candidate.variant is variant:
            levels = {"alarm": "bad", "warning": "warn"}
            badges += [Badge(a.title, levels[a.level], a.message) for a in candidate.alarms]  # type: ignore[arg-type]
    badges += [Badge("other origin", "note")] if variant.is_guest else []
    badges += (
        [Badge("stopped early", "note", "worse than the best beyond chance")] if variant.stopped_early else []
    )
    return badges


def best_variant(evaluation: Evaluation, selection: Selection | None) -> VariantScores:
    """Return the variant that the page is about: the selected one, else the best, else the last."""
    if selection and (selection.variant or selection.best):
        return selection.variant or selection.best or evaluation.variants[-1]
    return evaluation.adapter_variants[-1] if evaluation.adapter_variants else evaluation.variants[-1]


def viewed_variants(
    evaluation: Evaluation, selection: Selection | None, best: VariantScores
) -> list[VariantScores]:
    """Return the variants of the viewer: all of them, or those that matter and some evenly between."""
    variants = evaluation.variants
    if len(variants) <= MAX_COLUMNS:
        return variants
    ties = set(selection.tied_with) if selection else set()
    needed = [v for v in variants if v in (evaluation.base, best) or v.is_guest or v.name in ties]
    rest = [variant for variant in variants if variant not in needed]
    count = max(2, MAX_COLUMNS - len(needed))
    between = {round(i * (len(rest) - 1) / (count - 1)) for i in range(count)}
    kept = [*needed[:MAX_COLUMNS], *(rest[i] for i in sorted(between))]
    return [variant for variant in variants if variant in kept]
