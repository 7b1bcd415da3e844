"""Find the masks that a user laid beside the images, and tie them to the records.

A mask is a column `mask_file_name` in a metadata file, a file `a-masklabel.png` beside `a.jpg` (OneTrainer's
convention), or, when asked for, the picture's alpha channel; in that order. Mask files are not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from PIL import Image

from data_tools.captions import metadata
from data_tools.listing import Listing
from data_tools.scan import replace_notes, resolve_inside
from lorakit.core.errors import DataError
from lorakit.imaging import decode, masks
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

SIDECAR_SUFFIX = "-masklabel"
SEGMENTED = "segmented"
GENERATED = (
    "made: "  # how the source of masks and controls begins that lorakit made without being told of what
)
MASK_FOLDER = ".lorakit-masks"  # masks that lorakit made; hidden, so that no tool takes them for images
NOTES = frozenset({"mask_unfit", "mask_ambiguous", "mask_empty"})
_ORIENTATION = re.compile(r"rotated: EXIF orientation (\d)")
_ROTATED_90 = (5, 6, 7, 8)


def separate_mask_files(
    listing: Listing, encoding: str = "utf-8"
) -> tuple[Listing, dict[str, tuple[str, str]]]:
    """(the listing without mask files, (mask file, source) by image)."""
    named = {
        image: (mask, "metadata") for image, mask in metadata.read_mask_column(listing, encoding).items()
    }
    labels = {name for name in listing.images if PurePosixPath(name).stem.endswith(SIDECAR_SUFFIX)}
    files = labels | {mask for mask, _ in named.values()}
    pictures = tuple(name for name in listing.images if name not in files)
    by_stem = {str(PurePosixPath(name).with_suffix("")): name for name in sorted(labels)}
    beside = {
        image: (by_stem[stem], "sidecar")
        for image in pictures
        if (stem := str(PurePosixPath(image).with_suffix("")) + SIDECAR_SUFFIX) in by_stem
    }
    owned = {mask for mask, _ in beside.values()}
    orphans = tuple(sorted(labels - owned - {mask for mask, _ in named.values()}))
    apart = replace(listing, images=pictures, others=tuple(sorted({*listing.others, *orphans})))
    return apart, beside | named


def attach_masks(
    listing: Listing,
    records: Sequence[Record],
    found: Mapping[str, tuple[str, str]],
    *,
    alpha: bool = False,
) -> list[Record]:
    """The records with their masks; one that does not fit or shows nothing is named in a note, not used."""
    return [_attach(listing, record, found.get(record.file), alpha) for record in records]


def with_mask(record: Record, mask: Image.Image, file: str, source: str, turn: int = 1) -> Record:
    """The record with a mask that lies in `file`."""
    values = {"mask": file, "mask_source": source, "mask_turn": turn, "mask_pixels": masks.mask_hash(mask)}
    return replace(record, **values)  # type: ignore[arg-type]


def without_mask(record: Record) -> Record:
    """The record without a mask."""
    return replace(record, mask=None, mask_source=None, mask_turn=1, mask_pixels=None)


def _attach(listing: Listing, record: Record, found: tuple[str, str] | None, alpha: bool) -> Record:
    plain = replace_notes(record, NOTES, [])
    if not record.keep:
        return without_mask(plain)
    if found is None:
        if alpha and any(note.startswith("alpha:") for note in record.notes):
            mask = masks.mask_from_alpha(
                resolve_inside(listing.root, record.file), first_frame=record.first_frame
            )
            return with_mask(plain, mask, record.file, "alpha")
        # A mask that lorakit segmented stays while its picture does; one from a file went with the file.
        ours = (record.mask_source or "").startswith((SEGMENTED, GENERATED))
        return _keep_if_current(listing, plain) if ours else without_mask(plain)
    file, source = found
    path = resolve_inside(listing.root, file)
    try:
        turn, notes = _mask_orientation(decode.decode_image(path).size, record)
        mask = masks.load_mask_file(path, record.size, turn)
    except ImageError as error:
        code = error.reason if error.code == "mask_unfit" else f"mask_unfit: {file}: {error.reason}"
        return replace_notes(without_mask(plain), NOTES, [f"{code}; not used"])
    if not mask.getbbox():
        return replace_notes(
            without_mask(plain), NOTES, [f"mask_empty: {file} is black throughout; not used"]
        )
    return replace_notes(with_mask(plain, mask, file, source, turn), NOTES, notes)


def _keep_if_current(listing: Listing, record: Record) -> Record:
    """A mask that lorakit made is named by the picture it was made of."""
    try:
        if record.mask is None or PurePosixPath(record.mask).stem != generated_mask_stem(record):
            return without_mask(record)
        masks.read_record_mask(listing.root, record)
    except DataError:
        return without_mask(record)
    return record


def generated_mask_stem(record: Record) -> str:
    """What a mask that lorakit makes of a picture is called."""
    return record.pixels[:16]


def _mask_orientation(size: tuple[int, int], record: Record) -> tuple[int, list[str]]:
    """(EXIF orientation that makes the mask upright, notes).

    Tools that ignore EXIF make masks of the stored picture, others of the upright one. Sizes tell them apart
    when the picture was turned on its side; otherwise the mask counts as upright, and a note says so.
    """
    note = next((match for text in record.notes if (match := _ORIENTATION.match(text))), None)
    turn = int(note[1]) if note else 1
    upright, lying = masks.same_aspect(size, record.size), masks.same_aspect(size, record.size[::-1])
    if turn == 1 or (upright and turn in _ROTATED_90 and not lying):
        return 1, []
    if lying and not upright and turn in _ROTATED_90:
        return turn, []
    return 1, ["mask_ambiguous: the picture is turned by EXIF; its mask is taken as already upright"]
