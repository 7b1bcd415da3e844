"""Find the user's masks and attach them to the records.

A mask is named in the column `mask_file_name` of a metadata file, is a file `a-masklabel.png` (OneTrainer's
convention), `a_mask.png` or `masks/a.png` of `a.jpg` or, if requested, the image's alpha channel; in that
order. Mask files are not trained on. Names such as `a_mask.png` count only if the file is grey: it could show
a person with a mask.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from PIL import Image, ImageChops

from data_tools.captions import metadata
from data_tools.listing import Listing, file_stem
from data_tools.scan import replace_notes, resolve_inside
from lorakit.core.errors import DataError
from lorakit.imaging import decode, masks
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record, change_record

SIDECAR_SUFFIX = "-masklabel"
SEGMENTED = "segmented"
GENERATED = "generated: "  # prefix of the source of masks and controls that need no prompt
MASK_FOLDER = ".lorakit-masks"  # of generated masks; hidden, so that no tool uses them as images
NOTES = frozenset({"mask_size_mismatch", "mask_orientation_ambiguous", "mask_empty"})
MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations"})
IMAGE_FOLDERS = ("images", "image", "imgs", "img")  # beside a folder of masks
_NAMED_MASK = re.compile(r"(?P<stem>.+?)[-_. ]mask", re.IGNORECASE)
_MAX_COLOR = 8  # difference of the channels of a grey image that was compressed
_ORIENTATION = re.compile(r"exif_rotated: EXIF orientation (\d)")
_ROTATED_90 = (5, 6, 7, 8)


@dataclass(frozen=True)
class MaskFile:
    """A mask file of an image, not yet opened; `source` is metadata or file."""

    file: str
    source: str


def separate_mask_files(listing: Listing) -> tuple[Listing, dict[str, MaskFile]]:
    """Return the listing without mask files, and the mask file of each image that has one."""
    from_metadata = {
        image: MaskFile(files[0], "metadata")
        for image, files in listing.tables.files.get(metadata.MASK_COLUMN, {}).items()
    }
    named = {mask.file for mask in from_metadata.values()}
    labels = {name for name in listing.images if file_stem(name).endswith(SIDECAR_SUFFIX)}
    by_name = _masks_by_name(replace(listing, images=tuple(n for n in listing.images if n not in labels)))
    labels |= {mask.file for mask in by_name.values()}
    images = tuple(name for name in listing.images if name not in labels | named)
    by_stem = {file_stem(name): name for name in sorted(labels)}
    from_sidecars = {image: mask for image, mask in by_name.items() if image in images} | {
        image: MaskFile(by_stem[stem], "file")
        for image in images
        if (stem := file_stem(image) + SIDECAR_SUFFIX) in by_stem
    }
    owned = {mask.file for mask in from_sidecars.values()}
    other_files = tuple(sorted({*listing.other_files, *(labels - owned - named)}))
    return replace(listing, images=images, other_files=other_files), from_sidecars | from_metadata


def _masks_by_name(listing: Listing) -> dict[str, MaskFile]:
    """Return the grey files by image that are in a folder of masks, or have an image's name and `mask`."""
    stems = {os.path.splitext(name)[0]: name for name in reversed(listing.images)}
    mask_files: dict[str, MaskFile] = {}
    for name in listing.images:
        owner = next((stems[stem] for stem in _owner_stems(name) if stem in stems), None)
        if owner not in (None, name) and owner is not None and _is_gray(listing, name):
            mask_files.setdefault(owner, MaskFile(name, "file"))
    return mask_files


def _owner_stems(name: str) -> Iterator[str]:
    """Yield the names, without extension, of images that a file may be the mask of."""
    path = PurePosixPath(name)
    if match := _NAMED_MASK.fullmatch(path.stem):
        yield str(path.with_name(match["stem"]))
    for index, part in enumerate(path.parts[:-1]):
        if part.casefold() in MASK_FOLDERS:
            stem = match["stem"] if match else path.stem
            for images in ("", *IMAGE_FOLDERS):
                yield str(PurePosixPath(*path.parts[:index], images, *path.parts[index + 1 : -1], stem))


def _is_gray(listing: Listing, name: str) -> bool:
    """Return True for an image without colors; False for one that cannot be read."""
    try:
        image = decode.decode_image(resolve_inside(listing.root, name), background=(0, 0, 0))
    except ImageError:
        return False
    red, green, blue = image.resize((64, 64), Image.Resampling.NEAREST).split()
    differences = (ImageChops.difference(red, green), ImageChops.difference(red, blue))
    return all(int(one.getextrema()[1]) <= _MAX_COLOR for one in differences)  # type: ignore[arg-type]


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
    return change_record(record, mask=None, mask_source=None, mask_orientation=1, mask_content_hash=None)


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
        masks.read_record_mask(listing.folder, record)
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
