"""The manifest: one image is one JSON line. It is what the data tools and the trainer share.

`manifest.jsonl` lies beside the user's images and is canonical; `metadata.jsonl` is its twin in the
ImageFolder convention, so `datasets.load_dataset("imagefolder", data_dir=...)` reads the same pairs. An image
is never deleted or moved: it gets `keep: false` and a reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from lorakit.core import storage
from lorakit.core.errors import DataError

MANIFEST_FILE = "manifest.jsonl"
METADATA_FILE = "metadata.jsonl"
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # what ImageFolder looks for
# A record carries this note when the user's own metadata file has a row for it: that file is then never ours.
USER_METADATA_NOTE = "metadata: has a row in the user's metadata file"
CONDITIONING_IMAGE_KINDS = ("source", "control")
_HASH = re.compile(r"[0-9a-f]{64}")
_STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption text and where it came from: sidecar, metadata, folder, template, or a model.

    `edits` were applied in order to `raw` to get `text` (`data_tools.captions.edits`). `seen` is a short hash
    of the pixels and crop that a model was shown: when they change, its words may be wrong.
    """

    text: str
    source: str
    model: str | None = None
    prompt: str | None = None
    raw: str | None = None
    edits: tuple[str, ...] = ()
    seen: str | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class ConditioningImage:
    """A picture that an image comes with; its `kind` is "source" (what was edited to give it) or "control".

    `file` is relative, `sha256` of it, `width` and `height` in upright pixels; `by` says where it came from:
    sidecar, metadata, or what made it, such as canny.
    """

    kind: str
    file: str
    sha256: str
    width: int
    height: int
    by: str

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What makes a record a clip: its frames, and how many of them are shown a second."""

    frames: int
    fps: float

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Record:
    """One image. Sizes are pixels after EXIF rotation; `crop` is left, top, right, bottom.

    `sha256` is of the file. `pixels` names the picture in it: the hash of the decoded pixels
    (`images.pixel_hash`) or, for a JPEG, of the coded data that decide them (`jpeg.identity`). When the file
    gives no picture, `pixels` is "" and the size 0, `keep` is false and `reason` (`code: text`) says why.
    `notes` are `code: text` lines too. `bucket` is width, height. `crop_by` says who chose the crop (`user`:
    it stays as it is) and `focus` is the point x, y around which a crop was laid.

    `mask` is a relative path, the image's own when its alpha channel is the mask; `mask_source` says where it
    came from, `mask_turn` is the EXIF orientation that makes it upright, `mask_pixels` its content's hash
    (`masks.read`).

    Of a clip, `pixels` names the coded pictures, and everything else is of its first frame.

    `phash` is the perceptual hash that finds near duplicates (16 hex digits as it is, 16 mirrored). `repeats`
    is how often an epoch shows the image (kohya's `10_name` folders). `background` (#rrggbb, for images with
    transparency) and `first_frame` are how the picture was decoded: `images.read` repeats exactly that.

    `given` are the pictures that edits and controls are learnt from, several sources in their order.
    """

    file: str
    sha256: str
    pixels: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    tags: tuple[str, ...] = ()
    keep: bool = True
    reason: str | None = None
    notes: tuple[str, ...] = ()
    crop: tuple[int, int, int, int] | None = None
    bucket: tuple[int, int] | None = None
    mask: str | None = None
    phash: str | None = None
    repeats: int = 1
    background: str | None = None
    first_frame: bool = False
    crop_by: str | None = None
    focus: tuple[int, int] | None = None
    mask_source: str | None = None
    mask_turn: int = 1
    mask_pixels: str | None = None
    given: tuple[ConditioningImage, ...] = ()
    clip: VideoInfo | None = None

    __pydantic_config__ = _STRICT

    @property
    def caption(self) -> str:
        """The first caption's text, "" without one."""
        return self.captions[0].text if self.captions else ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height


_FIELDS = tuple(field.name for field in fields(Record))
_GIVEN_FIELDS = tuple(field.name for field in fields(ConditioningImage))
_CAPTION_FIELDS = tuple(field.name for field in fields(Caption))


def load_manifest(folder: str | os.PathLike[str]) -> list[Record]:
    """Read `manifest.jsonl` of a dataset folder; any defect is a `DataError` that names the line."""
    return list(iter_manifest(folder))


def iter_manifest(folder: str | os.PathLike[str]) -> Iterator[Record]:
    """`load`, one record at a time."""
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise DataError(
            "no manifest in this folder", where=str(path), remedy=f"run `lorakit data prepare {folder}`"
        )
    seen: dict[str, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = parse_record(line, where)
            if record.file in seen:
                message = f"{record.file!r} is listed twice, first in line {seen[record.file]}"
                raise DataError(message, where=where, remedy="delete one of the two lines")
            seen[record.file] = number
            yield record


def save_manifest(folder: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write `manifest.jsonl` sorted by file, and its twin unless the user has metadata of their own.

    Equal records give equal bytes.
    """
    root = Path(folder)
    ordered = sorted(records, key=lambda record: record.file)
    for record in ordered:
        check_record(record, f"{root / MANIFEST_FILE}: {record.file!r}")
    write_twin = not user_metadata_files(root, {PurePosixPath(record.file).parent for record in ordered})
    pairs = imagefolder_metadata(ordered)
    if write_twin and (root / METADATA_FILE).is_file() and (root / METADATA_FILE).read_bytes() != pairs:
        # A crash may leave no twin, but never one that contradicts the manifest.
        storage.remove_file(root / METADATA_FILE)
    with storage.open_atomic(root / MANIFEST_FILE) as file:
        for record in ordered:
            file.write(manifest_bytes([record]))
    if write_twin:
        storage.write_bytes(root / METADATA_FILE, pairs)


def manifest_bytes(records: Iterable[Record]) -> bytes:
    """`manifest.jsonl` of records that are already in order."""
    return b"".join(_line(record_to_json(record)) for record in records)


def imagefolder_metadata(records: Sequence[Record]) -> bytes:
    """`metadata.jsonl` of the kept records in the ImageFolder convention: `file_name` and `text`."""
    return b"".join(_line({"file_name": r.file, "text": r.caption}) for r in records if r.keep)


def user_metadata_files(
    folder: str | os.PathLike[str], inside: Iterable[PurePosixPath] = (PurePosixPath("."),)
) -> list[Path]:
    """The user's own metadata files in the folders `inside`: all but a `metadata.jsonl` that `save` wrote.

    Ours repeats what the manifest says. When the two contradict each other, someone edited one of them, and
    only the user can say which counts: a `DataError`.
    """
    root = Path(folder)
    folders = sorted({PurePosixPath("."), *inside})
    present = [path for part in folders for name in METADATA_FILES if (path := root / part / name).is_file()]
    if root / METADATA_FILE in present and (root / MANIFEST_FILE).is_file() and _is_generated_metadata(root):
        present.remove(root / METADATA_FILE)
    return present


def _is_generated_metadata(root: Path) -> bool:
    """Whether metadata.jsonl holds nothing but what the manifest says too."""
    said: dict[str, tuple[str, ...]] = {}
    for record in iter_manifest(root):
        if USER_METADATA_NOTE in record.notes:
            return False
        said[record.file] = tuple(caption.text for caption in record.captions)
    for number, entry in enumerate(storage.read_jsonl(root / METADATA_FILE), 1):
        name = str(entry.get("file_name"))
        if name not in said or set(entry) != {"file_name", "text"}:
            return False
        if entry["text"] not in ("", *said[name]):
            raise DataError(
                f"{METADATA_FILE} and {MANIFEST_FILE} contradict each other about {name!r}: "
                f"{str(entry['text'])[:80]!r} and {''.join(said[name][:1])[:80]!r}",
                where=f"{root / METADATA_FILE}, row {number}",
                remedy=f"delete {METADATA_FILE} to keep the manifest's captions, or {MANIFEST_FILE} to keep the others",
            )
    return True


def dataset_fingerprint(records: Iterable[Record]) -> str:
    """Hex SHA-256 over what training uses of the kept records, in file order."""
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.file):
        if record.keep:
            texts = [caption.text for caption in record.captions]
            used = [
                record.file,
                record.pixels,
                record.crop,
                record.bucket,
                texts,
                record.mask_pixels or record.mask,
                record.repeats,
                *([one.kind, one.sha256] for one in record.given),
            ]
            digest.update(_line(used))
    return digest.hexdigest()


def check_dataset_path(path: str, where: str) -> None:
    """Refuse a path that is empty or leads out of the dataset folder: absolute, `..`, drive, share, URL."""
    parts = re.split(r"[/\\]", path)
    outside = path.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:[\\/]", path)
    if not path or outside or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) or "\0" in path:
        raise DataError(
            f"{path!r} does not name a file inside the dataset folder",
            where=where,
            remedy="use a path relative to the dataset folder",
        )


def check_record(record: Record, where: str) -> None:
    """Refuse a record whose values contradict each other."""
    check_dataset_path(record.file, where)
    if record.mask is not None:
        check_dataset_path(record.mask, where)
    for one in record.given:
        check_dataset_path(one.file, where)
    problem = _problem(record)
    if problem:
        raise DataError(problem, where=where, remedy="correct the line, or run: lorakit data prepare")


def _problem(record: Record) -> str | None:
    if not record.keep and not record.reason:
        return "keep is false without a reason"
    if record.keep and not (_HASH.fullmatch(record.sha256) and _HASH.fullmatch(record.pixels)):
        return "sha256 and pixels of a kept image must be 64 hexadecimal digits"
    if record.keep and (record.width < 1 or record.height < 1):
        return f"a kept image cannot measure {record.width}x{record.height}"
    for one in record.given:
        if (
            one.kind not in CONDITIONING_IMAGE_KINDS
            or min(one.width, one.height) < 1
            or not _HASH.fullmatch(one.sha256)
        ):
            return (
                f"given: {one.file!r} is no sound entry; kind is one of {', '.join(CONDITIONING_IMAGE_KINDS)}"
            )
    if record.clip is not None and (record.clip.frames < 1 or record.clip.fps <= 0):
        return "a clip has at least one frame, and a rate above zero"
    if record.repeats < 1:
        return "repeats must be at least 1"
    if not 1 <= record.mask_turn <= 8:
        return f"mask_turn {record.mask_turn} is no EXIF orientation"
    if record.bucket is not None and min(record.bucket) < 1:
        return f"bucket {list(record.bucket)} is not a size"
    if record.crop is not None:
        left, top, right, bottom = record.crop
        if not (0 <= left < right <= record.width and 0 <= top < bottom <= record.height):
            return f"crop {list(record.crop)} does not lie inside {record.width}x{record.height}"
    return None


def parse_record(line: bytes, where: str) -> Record:
    """One manifest line as a record, strictly: unknown keys and wrong types are refused."""
    from pydantic import ValidationError

    try:
        record = _adapter().validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = f"{key}: {first['msg']}" if key else first["msg"]
        raise DataError(message, where=where, remedy="correct or delete the line") from error
    check_record(record, where)
    return record


_cached_adapter: Any = None


def _adapter() -> Any:
    global _cached_adapter
    if _cached_adapter is None:
        from pydantic import TypeAdapter

        _cached_adapter = TypeAdapter(Record)
    return _cached_adapter


def record_to_json(record: Record) -> dict[str, Any]:
    """A record as the JSON object of its line."""
    values = {name: getattr(record, name) for name in _FIELDS}
    values["captions"] = [_caption_row(caption) for caption in record.captions]
    values["given"] = [{name: getattr(one, name) for name in _GIVEN_FIELDS} for one in record.given]
    if not record.given:
        del values["given"]  # most datasets have none
    if record.clip is None:
        del values["clip"]
    else:
        values["clip"] = {"frames": record.clip.frames, "fps": record.clip.fps}
    return values


def _caption_row(caption: Caption) -> dict[str, Any]:
    values = {name: getattr(caption, name) for name in _CAPTION_FIELDS}
    return {name: value for name, value in values.items() if value is not None and value != ()}


def _line(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
