"""Find the pictures that images come with, what they were edited from or are controlled by, and record them.

A source is a file `a.source.png` beside `a.jpg` (several: `a.source1.png`, `a.source2.png`) or a column
`source_file_name` of a metadata file, one path or a list; a control is `a.control.png` or
`control_file_name`. They are not trained on themselves. What lorakit made lies in a hidden folder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_tools.captions import metadata
from data_tools.conditioning.masks import GENERATED
from data_tools.listing import Listing
from data_tools.scan import replace_notes, resolve_inside
from lorakit.core import storage
from lorakit.imaging import decode, masks
from lorakit.imaging.decode import ImageError
from lorakit.manifest import ConditioningImage, Record

CONTROL_FOLDER = (
    ".lorakit-control"  # controls that lorakit made; hidden, so that no tool takes them for images
)
NOTES = frozenset({"given_unreadable", "given_other_shape"})
_SIDECAR_NAME = re.compile(r"(?P<stem>.+)\.(?P<kind>source|control)(?P<number>\d*)")


class ConditioningFile(NamedTuple):
    """A picture that belongs to an image, not yet opened."""

    kind: str
    file: str
    by: str


def separate_conditioning_files(
    listing: Listing, encoding: str = "utf-8"
) -> tuple[Listing, dict[str, list[ConditioningFile]]]:
    """(the listing without such pictures, what each image comes with)."""
    found: dict[str, list[ConditioningFile]] = defaultdict(list)
    for kind, column in metadata.CONDITIONING_COLUMNS.items():
        for image, files in metadata.read_file_column(listing, column, encoding).items():
            found[image] += [ConditioningFile(kind, file, "metadata") for file in files]
    named = {one.file for some in found.values() for one in some}
    stems = {str(PurePosixPath(name).with_suffix("")): name for name in listing.images if name not in named}
    lying: dict[str, list[tuple[str, int, ConditioningFile]]] = defaultdict(list)
    orphans = []
    for name in listing.images:
        match = _SIDECAR_NAME.fullmatch(str(PurePosixPath(name).with_suffix("")))
        if match is None or name in named:
            continue
        owner = stems.get(match["stem"])
        if owner is None:
            orphans.append(name)
            continue
        kind = match["kind"]
        lying[owner].append((kind, int(match["number"] or 0), ConditioningFile(kind, name, "sidecar")))
    for image, some in lying.items():
        told = {one.kind for one in found[image]}  # what metadata says goes before what lies about
        found[image] += [one for kind, _, one in sorted(some) if kind not in told]
    apart = named | {one.file for some in lying.values() for _, _, one in some} | set(orphans)
    pictures = tuple(name for name in listing.images if name not in apart)
    others = tuple(sorted({*listing.others, *orphans}))
    return replace(listing, images=pictures, others=others), {k: v for k, v in found.items() if v}


def attach_conditioning(
    listing: Listing, records: Sequence[Record], found: Mapping[str, Sequence[ConditioningFile]]
) -> list[Record]:
    """The records with the pictures they come with; one that cannot be read is named in a note, not used."""
    return [_attach_to_record(listing, record, found.get(record.file, ())) for record in records]


def generated_stem(record: Record) -> str:
    """What a control that lorakit makes of a picture is called, but for its kind and ending."""
    return record.pixels[:16]


def with_generated_control(record: Record, one: ConditioningImage) -> Record:
    """The record with a control that lorakit made in place of an earlier one."""
    kept = [other for other in record.given if not other.by.startswith(GENERATED)]
    return replace(record, given=(*kept, one))


def read_conditioning_image(root: Path, name: ConditioningFile) -> ConditioningImage:
    """The entry of a file; raises `ImageError` for what is no picture."""
    path = resolve_inside(root, name.file)
    width, height = decode.decode_image(path).size
    return ConditioningImage(name.kind, name.file, storage.sha256_file(path), width, height, name.by)


def _attach_to_record(listing: Listing, record: Record, found: Sequence[ConditioningFile]) -> Record:
    plain, notes, given = replace_notes(record, NOTES, []), [], []
    if not record.keep:
        return replace(plain, given=())
    known = {(one.kind, one.file, one.sha256): one for one in record.given}
    for name in found:
        try:
            digest = storage.sha256_file(resolve_inside(listing.root, name.file))
            one = known.get((name.kind, name.file, digest)) or read_conditioning_image(listing.root, name)
        except ImageError as error:
            notes.append(f"given_unreadable: {name.file}: {error.reason}; not used")
            continue
        if not masks.same_aspect((one.width, one.height), record.size):
            size = f"{one.width}x{one.height}"
            notes.append(f"given_other_shape: {name.file} measures {size}; its middle is used")
        given.append(replace(one, by=name.by))
    told = {one.kind for one in given}
    given += [
        one for one in record.given if one.kind not in told and _generated_is_current(listing, record, one)
    ]
    return replace_notes(replace(plain, given=tuple(given)), NOTES, notes)


def _generated_is_current(listing: Listing, record: Record, one: ConditioningImage) -> bool:
    """Whether lorakit made it, of the picture as it is now."""
    own = one.by.startswith(GENERATED) and PurePosixPath(one.file).name.startswith(generated_stem(record))
    return own and (listing.root / one.file).is_file()
