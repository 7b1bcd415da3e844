"""Reading of tars as webdatasets: files with one key are one sample; those that lorakit wrote have a record.

A sample of one image with its caption files stays as it is named. A sample of several images (`a.input.jpg`,
`a.edited.jpg`), or with texts that belong to none of its images (`a.prompt.txt`), is read like the row of a
table whose columns are the extensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.captions.text import decode_text
from data_tools.formats import DatasetFile, separate_mask_path
from data_tools.formats.archive_checks import ArchiveLimits, ArchiveMember
from data_tools.formats.column_names import image_role
from data_tools.formats.column_roles import ColumnChoice, ColumnRoles, assign_roles
from data_tools.formats.import_log import ImportLog
from data_tools.formats.left_out import LeftOut
from data_tools.formats.members import reason_to_leave_out
from data_tools.formats.row_files import row_files
from data_tools.formats.tar_archives import read_tar
from data_tools.formats.webdataset import MASK_EXTENSION, RECORD_KEY, conditioning_extensions
from data_tools.listing import IMAGE_SUFFIXES
from lorakit import manifest
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json
from lorakit.imaging import signatures

_SAMPLE_FILES = 64
_PAIRED_SUFFIXES = (".txt", ".caption", ".json")  # read beside an image of the same name
_TEXT_SUFFIXES = (".txt", ".caption", ".text", ".prompt")
_ROLES: set[str] = {"source", "target", "control", "mask"}
_SHARED = "samples of several images with one caption, which each of them has"


def read_webdataset(
    path: Path, limits: ArchiveLimits, choice: ColumnChoice | None = None, log: ImportLog | None = None
) -> Iterator[DatasetFile]:
    """Yield the files of a tar; a sample that lorakit wrote gets its original names and record."""
    reader = _SampleReader(path, choice or ColumnChoice(), log or ImportLog())
    for sample in _samples(read_tar(path, limits)):
        yield from _restore_own_sample(path, sample) or reader.files(sample)


def _samples(members: Iterator[ArchiveMember]) -> Iterator[list[ArchiveMember]]:
    """Group adjacent members with the same key."""
    sample: list[ArchiveMember] = []
    for member in members:
        is_same = sample and _split_key(member.name)[0] == _split_key(sample[0].name)[0]
        if sample and (not is_same or len(sample) >= _SAMPLE_FILES):
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _split_key(name: str) -> tuple[str, str]:
    """Return key and extension; the extension starts at the first dot of the file name."""
    path = PurePosixPath(name)
    stem, dot, extension = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, dot + extension


# ---- samples of other tools --------------------------------------------------------------------------------


class _SampleReader:
    """Reads samples of other tools; those with equal extensions have equal roles."""

    def __init__(self, path: Path, choice: ColumnChoice, log: ImportLog) -> None:
        self.path, self.choice, self.log = path, choice, log
        self.roles: dict[tuple[str, ...], ColumnRoles] = {}

    def files(self, sample: Sequence[ArchiveMember]) -> Iterator[DatasetFile]:
        """Yield the files of a sample; those that are not used are added to the log."""
        images = [member for member in sample if _is_image(member)]
        columns = [_image_column(member) for member in images]
        is_set = len(images) > 1 and not _ROLES.isdisjoint(map(image_role, columns))
        texts = [member for member in sample if member not in images and _is_unpaired(member, images)]
        if not images or not (self.choice.names() or texts or (is_set and len(sample) > len(images))):
            yield from (DatasetFile(member.name, member.data) for member in sample)
            return
        key = _split_key(images[0].name)[0]
        row = self._texts(sample, images)
        cells = {
            name: {"bytes": member.data, "path": PurePosixPath(member.name).name}
            for name, member in zip(columns, images, strict=True)
        }
        if is_set or self.choice.names():
            yield from self._row(key, row | cells)
            return
        if len(images) > 1:
            self.log.remarks[_SHARED] += 1
        for image in images:
            stem = str(PurePosixPath(image.name).with_suffix("")) if len(images) > 1 else key
            yield from self._row(stem, row | {"image": cells[_image_column(image)]})

    def _row(self, stem: str, row: Mapping[str, Any]) -> list[DatasetFile]:
        names, where = tuple(row), f"{self.path.name}: {stem}"
        if names not in self.roles:
            self.roles[names] = assign_roles([row], where, self.choice)
            self.log.add_columns(self.roles[names])
        left_out = self.log.left_out
        return row_files(stem, row, self.roles[names], where, lambda name: None, left_out, with_name=False)

    def _texts(self, sample: Sequence[ArchiveMember], images: Sequence[ArchiveMember]) -> dict[str, Any]:
        """Return the texts of a sample by extension, and the values of its JSON by key."""
        row: dict[str, Any] = {}
        for member in sample:
            suffix = PurePosixPath(member.name).suffix.lower()
            extension = _split_key(member.name)[1].lstrip(".")
            if suffix == ".json":
                row |= _json_values(member, self.log.left_out)
            elif suffix in _TEXT_SUFFIXES:
                name = extension.removesuffix(suffix) or suffix.lstrip(".")
                row[name] = _decoded(member, self.log.left_out)
            elif member not in images:
                reason = reason_to_leave_out(member.name, member.data) or "not used"
                self.log.left_out.add("file", reason, member.name)
        return row


def _is_image(member: ArchiveMember) -> bool:
    suffix = PurePosixPath(member.name).suffix.lower()
    is_text = suffix in _TEXT_SUFFIXES or suffix == ".json"
    return suffix in IMAGE_SUFFIXES or (not is_text and signatures.is_image_header(member.data[:16]))


def _image_column(member: ArchiveMember) -> str:
    """Return the extension of an image without its format: `input` of `a.input.jpg`, `jpg` of `a.jpg`."""
    extension = _split_key(member.name)[1].lstrip(".")
    return extension.rpartition(".")[0] or extension


def _is_unpaired(member: ArchiveMember, images: Sequence[ArchiveMember]) -> bool:
    """Return True for a text that belongs to no image by its name."""
    path = PurePosixPath(member.name)
    suffix = path.suffix.lower()
    if suffix not in (*_TEXT_SUFFIXES, ".json"):
        return False
    own = str(path.with_suffix(""))
    stems = {str(PurePosixPath(image.name).with_suffix("")) for image in images}
    is_paired = own in stems or own in {image.name for image in images}
    return not is_paired or suffix not in _PAIRED_SUFFIXES


def _decoded(member: ArchiveMember, left_out: LeftOut) -> str | None:
    try:
        return decode_text(member.data, member.name).strip()
    except DataError as error:
        left_out.add("file", error.message, member.name)
        return None


def _json_values(member: ArchiveMember, left_out: LeftOut) -> dict[str, Any]:
    try:
        value = parse_json(member.data, member.name)
    except DataError as error:
        left_out.add("file", error.message, member.name)
        return {}
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else {"json": value}


# ---- samples of lorakit ------------------------------------------------------------------------------------


def _restore_own_sample(path: Path, sample: Sequence[ArchiveMember]) -> list[DatasetFile]:
    """Return the files of a sample that lorakit wrote, with the names of its record; [] for others."""
    parts = {_split_key(member.name)[1].lower(): member for member in sample}
    if ".json" not in parts:
        return []
    where = f"{path}, {parts['.json'].name}"
    try:
        sample_json = parse_json(parts[".json"].data, where)
    except DataError:  # of another program
        return []
    if not isinstance(sample_json, dict) or RECORD_KEY not in sample_json:
        return []
    record = manifest.parse_record(json.dumps(sample_json[RECORD_KEY]).encode("utf-8"), where)
    mask = separate_mask_path(record)
    extensions = [*([(MASK_EXTENSION, mask)] if mask else []), *conditioning_extensions(record)]
    files = [DatasetFile(record.file, b"", record, keep_name=True)]
    for start, name in extensions:
        data = parts.pop(f"{start}{PurePosixPath(name).suffix}".lower(), None)
        files += [] if data is None else [DatasetFile(name, data.data, keep_name=True)]
    images = [member.data for ending, member in parts.items() if ending not in (".json", ".txt")]
    if len(images) != 1 or len(files) != 1 + len(extensions):
        message = "a sample must have exactly one image, and the masks and conditioning images of its record"
        raise DataError(message, where=where, remedy="export the dataset again")
    return [files[0]._replace(data=images[0]), *files[1:]]
