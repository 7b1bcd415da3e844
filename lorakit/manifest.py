"""The manifest: the dataset schema that the data tools and the trainer share, one JSON line per image.

`manifest.jsonl` is canonical. It lies beside the user's images, or in a folder that names theirs
(`core/dataset_paths.py`). `metadata.jsonl` repeats files and captions in the ImageFolder convention, so that
`datasets.load_dataset("imagefolder", data_dir=...)` reads the same pairs. An image is never deleted or moved:
it gets `keep: false` and a reason.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lorakit.core import dataset_paths, storage
from lorakit.core.dataset_paths import check_dataset_path as check_dataset_path
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json

MANIFEST_FILE = "manifest.jsonl"
METADATA_FILE = "metadata.jsonl"
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the names that ImageFolder reads
# In the notes of a record that has a row in the user's own metadata file, which is never overwritten.
USER_METADATA_NOTE = "user_metadata: has a row in the user's metadata file"
CONDITIONING_IMAGE_TYPES = ("source", "control")
_HASH = re.compile(r"[0-9a-f]{64}")
_STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption and its source: file, metadata, folder, template, or model.

    `prompt` is what a model was asked, or the template with the names of its words, such as {trigger}.
    `edits` were applied in order to `original_text` to get `text` (`data_tools.captions.edits`).
    `image_hash` is a short hash of the pixels and crop that a captioning model described: if they change, the
    caption may be wrong.
    """

    text: str
    source: str
    model: str | None = None
    prompt: str | None = None
    original_text: str | None = None
    edits: tuple[str, ...] = ()
    image_hash: str | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class ConditioningImage:
    """An image given with a caption; `type` is "source" (the image before an edit) or "control".

    `file` is relative to the dataset folder, `sha256` its hash, `width` and `height` its size in pixels after
    EXIF rotation. `origin` is file, metadata, or the tool that generated it, such as canny.
    """

    type: str
    file: str
    sha256: str
    width: int
    height: int
    origin: str

    __pydantic_config__ = _STRICT

    @property
    def is_generated(self) -> bool:
        """True if lorakit made the image from the training image, False if the user supplied it."""
        return self.origin not in ("file", "metadata")


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Number of frames of a video, and its mean frame rate."""

    frames: int
    fps: float
    times: tuple[float, ...] = ()
    """Presentation time of each frame in seconds, from 0; only of a video with a variable frame rate."""

    __pydantic_config__ = _STRICT


@dataclass(frozen=True, slots=True)
class Record:
    """One image. Sizes are pixels after EXIF rotation; `crop` is left, top, right, bottom.

    `sha256` is the hash of the file. `content_hash` identifies the image in it: the hash of the decoded
    pixels (`decode.pixel_hash`) or, of a JPEG, of the coded data that determine them
    (`jpeg.summarize_jpeg`). If the file cannot be used, `content_hash` is "" and the size 0, `keep` is
    false and `reason` (`code: text`) says why. `notes` are `code: text` lines too. `bucket` is width, height.
    `crop_source` says who chose the crop (a crop of the `user` is never changed), and `focal_point` is the
    point x, y around which a crop was placed.

    `mask` is a relative path, equal to `file` if the alpha channel is the mask; `mask_source` is its source,
    `mask_orientation` the EXIF orientation that makes it upright, and `mask_content_hash` its hash
    (`masks.mask_hash`).

    Of a video, `content_hash` identifies the coded frames, and everything else describes the first frame.

    `phash` is the perceptual hash for near duplicates (16 hex digits of the image, 16 of its mirror image).
    `repeats` is the number of times that an epoch contains the image (kohya's `10_name` folders).
    `background` (#rrggbb, of images with transparency) and `first_frame` tell how the image was decoded:
    `decode.read_record_image` decodes it in the same way.

    `conditioning_images` are the sources and controls given with the image, several sources in their order.
    """

    file: str
    sha256: str
    content_hash: str
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
    crop_source: str | None = None
    focal_point: tuple[int, int] | None = None
    mask_source: str | None = None
    mask_orientation: int = 1
    mask_content_hash: str | None = None
    conditioning_images: tuple[ConditioningImage, ...] = ()
    video: VideoInfo | None = None

    __pydantic_config__ = _STRICT

    @property
    def caption(self) -> str:
        """The first caption's text; "" without captions."""
        return self.captions[0].text if self.captions else ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height


def change_record(record: Record, **values: Any) -> Record:
    """Return the record with these values; the same object, which is faster, if it has them already."""
    if all(getattr(record, name) == value for name, value in values.items()):
        return record
    return replace(record, **values)


_FIELDS = tuple(field.name for field in fields(Record))
_CONDITIONING_IMAGE_FIELDS = tuple(field.name for field in fields(ConditioningImage))
_CAPTION_FIELDS = tuple(field.name for field in fields(Caption))


def load_manifest(folder: str | os.PathLike[str]) -> list[Record]:
    """Read `manifest.jsonl` of a dataset folder; a defect is a DataError that names the line."""
    return list(iter_manifest(folder))


def iter_manifest(folder: str | os.PathLike[str]) -> Iterator[Record]:
    """Read the manifest one record at a time; see `load_manifest`."""
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise DataError(
            "no manifest in this folder", where=str(path), remedy=f"run `lorakit data prepare {folder}`"
        )
    line_of_file: dict[str, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = parse_record(line, where)
            if record.file in line_of_file:
                message = f"{record.file!r} is listed twice, first in line {line_of_file[record.file]}"
                raise DataError(message, where=where, remedy="delete one of the two lines")
            line_of_file[record.file] = number
            yield record


def save_manifest(
    folder: str | os.PathLike[str],
    records: Iterable[Record],
    *,
    wrote_metadata: Callable[[], bool] | None = None,
) -> None:
    """Write `manifest.jsonl` sorted by file, and `metadata.jsonl` unless the user has metadata files.

    Equal records give equal bytes. Raises DataError for a record that contradicts itself. `wrote_metadata` as
    in `user_metadata_files`.
    """
    root = Path(folder)
    ordered = sorted(records, key=lambda record: record.file)
    for record in ordered:
        check_record(record, f"{root / MANIFEST_FILE}: {record.file!r}")
    pairs, metadata_file = imagefolder_metadata(ordered), root / METADATA_FILE
    write_metadata = False
    if not metadata_file.is_file() or metadata_file.read_bytes() != pairs:
        subfolders = folders_of(record.file for record in ordered)
        write_metadata = not user_metadata_files(root, subfolders, wrote_metadata=wrote_metadata)
    if write_metadata and metadata_file.is_file():
        # A crash may leave no metadata.jsonl, but never one that contradicts the manifest.
        storage.remove_file(metadata_file)
    with storage.open_atomic(root / MANIFEST_FILE) as file:
        for record in ordered:
            file.write(manifest_bytes([record]))
    if write_metadata:
        storage.write_bytes(metadata_file, pairs)


def manifest_bytes(records: Iterable[Record]) -> bytes:
    """Return the bytes of `manifest.jsonl` for records that are in order."""
    return b"".join(_line(record_to_json(record)) for record in records)


def imagefolder_metadata(records: Iterable[Record]) -> bytes:
    """Return the bytes of `metadata.jsonl` for the kept records (ImageFolder's `file_name` and `text`)."""
    return b"".join(_line({"file_name": r.file, "text": r.caption}) for r in records if r.keep)


def folders_of(files: Iterable[str]) -> set[PurePosixPath]:
    """Return the folders that files of a dataset are in, and all folders around them."""
    folders = {PurePosixPath(name) for name in {os.path.dirname(file) for file in files}}
    return folders | {parent for folder in folders for parent in folder.parents}


def user_metadata_files(
    folder: str | os.PathLike[str],
    subfolders: Iterable[PurePosixPath] = (PurePosixPath("."),),
    *,
    wrote_metadata: Callable[[], bool] | None = None,
) -> list[Path]:
    """Return the user's own metadata files: all except a `metadata.jsonl` that `save_manifest` wrote.

    `wrote_metadata` answers if it did; without, the manifest is read for it.

    Raises DataError if such a `metadata.jsonl` contradicts the manifest: somebody edited one of the two, and
    only the user knows which is right.
    """
    root = Path(folder)
    folders = sorted({PurePosixPath("."), *subfolders})
    present = [path for part in folders for name in METADATA_FILES if (path := root / part / name).is_file()]
    if root / METADATA_FILE in present and (root / MANIFEST_FILE).is_file():
        is_own = wrote_metadata() if wrote_metadata else is_generated_metadata(root, load_manifest(root))
        if is_own:
            present.remove(root / METADATA_FILE)
    return present


def is_generated_metadata(folder: str | os.PathLike[str], records: Collection[Record]) -> bool:
    """Return True if metadata.jsonl only repeats these records, which are those of the manifest."""
    root = Path(folder)
    captions: dict[str, tuple[str, ...]] = {}
    beside_images = dataset_paths.linked_folder(root) is None
    for record in records:
        if beside_images and USER_METADATA_NOTE in record.notes:
            return False
        captions[record.file] = tuple(caption.text for caption in record.captions)
    if (root / METADATA_FILE).read_bytes() == imagefolder_metadata(records):
        return True
    for number, entry in enumerate(storage.read_jsonl(root / METADATA_FILE), 1):
        name = str(entry.get("file_name"))
        if name not in captions or set(entry) != {"file_name", "text"}:
            return False
        if entry["text"] not in ("", *captions[name]):
            raise DataError(
                f"{METADATA_FILE} and {MANIFEST_FILE} contradict each other about {name!r}: "
                f"{str(entry['text'])[:80]!r} and {''.join(captions[name][:1])[:80]!r}",
                where=f"{root / METADATA_FILE}, row {number}",
                remedy=f"delete {METADATA_FILE} to keep the manifest's captions, otherwise {MANIFEST_FILE}",
            )
    return True


def check_record(record: Record, where: str) -> None:
    """Raise DataError for a record with values that contradict each other."""
    check_dataset_path(record.file, where)
    if record.mask is not None:
        check_dataset_path(record.mask, where)
    for image in record.conditioning_images:
        check_dataset_path(image.file, where)
    problem = _find_problem(record)
    if problem:
        raise DataError(problem, where=where, remedy="correct the line, or run: lorakit data prepare")


def _find_problem(record: Record) -> str | None:
    if not record.keep and not record.reason:
        return "keep is false without a reason"
    if record.keep and not (_HASH.fullmatch(record.sha256) and _HASH.fullmatch(record.content_hash)):
        return "sha256 and content_hash of a kept image must be 64 hexadecimal digits"
    if record.keep and (record.width < 1 or record.height < 1):
        return f"a kept image cannot have the size {record.width}x{record.height}"
    for image in record.conditioning_images:
        if image.type not in CONDITIONING_IMAGE_TYPES:
            return (
                f"conditioning_images: type of {image.file!r} must be {' or '.join(CONDITIONING_IMAGE_TYPES)}"
            )
        if min(image.width, image.height) < 1 or not _HASH.fullmatch(image.sha256):
            return f"conditioning_images: {image.file!r} needs a size and a sha256 of 64 hexadecimal digits"
    if record.video is not None and (record.video.frames < 1 or record.video.fps <= 0):
        return "a video has at least one frame and a frame rate above zero"
    if record.video is not None and record.video.times and not _are_frame_times(record.video):
        return "the times of a video start at 0, increase, and are as many as its frames"
    if record.repeats < 1:
        return "repeats must be at least 1"
    if not 1 <= record.mask_orientation <= 8:
        return f"mask_orientation {record.mask_orientation} is not an EXIF orientation (1 to 8)"
    if record.bucket is not None and min(record.bucket) < 1:
        return f"bucket {list(record.bucket)} is not a size"
    if record.crop is not None:
        left, top, right, bottom = record.crop
        if not (0 <= left < right <= record.width and 0 <= top < bottom <= record.height):
            return f"crop {list(record.crop)} does not lie inside the image of {record.width}x{record.height}"
    return None


def parse_record(line: bytes, where: str) -> Record:
    """Parse one manifest line strictly: unknown keys and wrong types are a DataError."""
    from pydantic import ValidationError

    parse_json(line, where, remedy="correct or delete the line")  # pydantic accepts duplicate keys
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
    """Return a record as the JSON object of its line."""
    values = {name: getattr(record, name) for name in _FIELDS}
    values["captions"] = [_caption_row(caption) for caption in record.captions]
    values["conditioning_images"] = [
        {name: getattr(image, name) for name in _CONDITIONING_IMAGE_FIELDS}
        for image in record.conditioning_images
    ]
    if not record.conditioning_images:
        del values["conditioning_images"]  # most datasets have none
    if record.video is None:
        del values["video"]
    else:
        values["video"] = {"frames": record.video.frames, "fps": record.video.fps}
        if record.video.times:
            values["video"]["times"] = list(record.video.times)
    return values


def _are_frame_times(video: VideoInfo) -> bool:
    pairs = itertools.pairwise(video.times)
    return len(video.times) == video.frames and video.times[0] == 0 and all(a < b for a, b in pairs)


def _caption_row(caption: Caption) -> dict[str, Any]:
    values = {name: getattr(caption, name) for name in _CAPTION_FIELDS}
    return {name: value for name, value in values.items() if value is not None and value != ()}


def _line(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
