"""Find the user's masks and attach them to the records.

A mask is named in the column `mask_file_name` of a metadata file, is a file `a-masklabel.png` beside `a.jpg`
(OneTrainer's convention) or, if requested, the image's alpha channel; in that order. Mask files are not
trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
GENERATED = "generated: "  # prefix of the source of masks and controls that need no prompt
MASK_FOLDER = ".lorakit-masks"  # of generated masks; hidden, so that no tool uses them as images
NOTES = frozenset({"mask_size_mismatch", "mask_orientation_ambiguous", "mask_empty"})
_ORIENTATION = re.compile(r"exif_rotated: EXIF orientation (\d)")
_ROTATED_90 = (5, 6, 7, 8)


@dataclass(frozen=True)
class MaskFile:
    """A mask file of an image, not yet opened; `source` is metadata or file."""

    file: str
    source: str


def separate_mask_files(listing: Listing, encoding: str = "utf-8") -> tuple[Listing, dict[str, MaskFile]]:
    """Return the listing without mask files, and the mask file of each image that has one."""
    from_metadata = {
        image: MaskFile(mask, "metadata")
        for image, mask in metadata.read_mask_column(listing, encoding).items()
    }
    named = {mask.file for mask in from_metadata.values()}
    labels = {name for name in listing.images if PurePosixPath(name).stem.endswith(SIDECAR_SUFFIX)}
    images = tuple(name for name in listing.images if name not in labels | named)
    by_stem = {str(PurePosixPath(name).with_suffix("")): name for name in sorted(labels)}
    from_sidecars = {
        image: MaskFile(by_stem[stem], "file")
        for image in images
        if (stem := str(PurePosixPath(image).with_suffix("")) + SIDECAR_SUFFIX) in by_stem
    }
    owned = {mask.file for mask in from_sidecars.values()}
    other_files = tuple(sorted({*listing.other_files, *(labels - owned - named)}))
    return replace(listing, images=images, other_files=other_files), from_sidecars | from_metadata


def attach_masks(
    listing: Listing,
    records: Sequence[Record],
    mask_files: Mapping[str, MaskFile],
    *,
    alpha: bool = False,
) -> list[Record]:
    """Return the records with their masks; one that does not fit or is black is noted and not used."""
    return [_attach(listing, record, mask_files.get(record.file), alpha) for record in records]


def with_mask(record: Record, mask: Image.Image, file: str, source: str, orientation: int = 1) -> Record:
    """Return the record with `mask`, which is stored in `file`."""
    return replace(
        record,
        mask=file,
        mask_source=source,
        mask_orientation=orientation,
        mask_content_hash=masks.mask_hash(mask),
    )


def without_mask(record: Record) -> Record:
    """Return the record without a mask."""
    return replace(record, mask=None, mask_source=None, mask_orientation=1, mask_content_hash=None)


def _attach(listing: Listing, record: Record, mask_file: MaskFile | None, alpha: bool) -> Record:
    plain = replace_notes(record, NOTES, [])
    if not record.keep:
        return without_mask(plain)
    if mask_file is None:
        if alpha and any(note.startswith("transparency:") for note in record.notes):
            mask = masks.mask_from_alpha(
                resolve_inside(listing.root, record.file), first_frame=record.first_frame
            )
            return with_mask(plain, mask, record.file, "alpha")
        # A generated mask stays while its image does not change; a mask from a file goes with the file.
        is_generated = (record.mask_source or "").startswith((SEGMENTED, GENERATED))
        return _keep_if_current(listing, plain) if is_generated else without_mask(plain)
    file = mask_file.file
    path = resolve_inside(listing.root, file)
    try:
        orientation, notes = _mask_orientation(decode.decode_image(path).size, record)
        mask = masks.load_mask_file(path, record.size, orientation)
    except ImageError as error:
        is_mismatch = error.code == "mask_size_mismatch"
        note = error.reason if is_mismatch else f"mask_size_mismatch: {file}: {error.reason}"
        return replace_notes(without_mask(plain), NOTES, [f"{note}; not used"])
    if not mask.getbbox():
        return replace_notes(without_mask(plain), NOTES, [f"mask_empty: {file} is black all over; not used"])
    return replace_notes(with_mask(plain, mask, file, mask_file.source, orientation), NOTES, notes)


def _keep_if_current(listing: Listing, record: Record) -> Record:
    """Return the record with its generated mask if it was generated from the present image, else without."""
    try:
        if record.mask is None or PurePosixPath(record.mask).stem != generated_mask_stem(record):
            return without_mask(record)
        masks.read_record_mask(listing.root, record)
    except DataError:
        return without_mask(record)
    return record


def generated_mask_stem(record: Record) -> str:
    """Return the name, without extension, of a mask generated from the image."""
    return record.content_hash[:16]


def _mask_orientation(size: tuple[int, int], record: Record) -> tuple[int, list[str]]:
    """Return the EXIF orientation that makes the mask upright, and notes.

    Tools that ignore EXIF make masks of the stored image, others of the upright one. The sizes differ if the
    image was rotated by 90 degrees; otherwise the mask counts as upright, and a note says so.
    """
    note = next((match for text in record.notes if (match := _ORIENTATION.match(text))), None)
    orientation = int(note[1]) if note else 1
    fits_upright = masks.same_aspect(size, record.size)
    fits_rotated = masks.same_aspect(size, record.size[::-1])
    if orientation == 1 or (fits_upright and orientation in _ROTATED_90 and not fits_rotated):
        return 1, []
    if fits_rotated and not fits_upright and orientation in _ROTATED_90:
        return orientation, []
    return 1, [
        "mask_orientation_ambiguous: the image is rotated by EXIF; its mask is used as already upright"
    ]
