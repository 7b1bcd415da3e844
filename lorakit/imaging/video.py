"""Clips: examined once, and read again frame by frame; PyAV decodes them.

A clip's picture, for everything that looks at one, is its first frame. Training keeps frames from the clip's
beginning, at the rate at which the base makes its own: every second frame of one of twice the rate, every
frame of a slower one. Nothing is drawn at random, so the same file gives the same frames.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorakit.core.errors import ConfigError
from lorakit.imaging.image_reader import ImageError
from lorakit.manifest import VideoInfo

# The demuxer is chosen by the name's ending: one chosen by content could be a playlist of other files.
_FORMATS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".webm": "matroska", ".mkv": "matroska"}
VIDEO_SUFFIXES = frozenset(_FORMATS)
_COPY_REMEDY = "copy it again from where it is whole, or save it as .mp4"
_UNSPECIFIED_COLORSPACE = 2  # colours of a frame that does not say by which rule they were coded
_MIN_HD_LINES = 720  # lines from which films without a word on it are coded by BT.709, as players assume


@dataclass(frozen=True)
class VideoInspection:
    """What examining a clip tells; `pixels` names its content, the hash of the coded picture stream."""

    first: Image.Image  # RGB, upright
    clip: VideoInfo
    pixels: str


def is_video(name: str) -> bool:
    """Whether a file's name is that of a clip."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def inspect_video(data: bytes, name: str, max_pixels: int) -> VideoInspection:
    """Decode the whole clip once. Raises `ImageError` for one that is damaged, cut off or too large."""
    digest, count, first, end = hashlib.sha256(b"clip"), 0, None, 0.0
    with _VideoReader(data, name) as (container, stream):
        codec = stream.codec_context
        if codec.width * codec.height > max_pixels:
            message = f"{codec.width}x{codec.height} is more than {max_pixels} pixels"
            raise ImageError("too_many_pixels", message, where=name, remedy="shrink it")
        for packet in container.demux(stream):
            if packet.size:
                digest.update(bytes(packet))
            for frame in packet.decode():
                first = _rotated_pixels(frame) if first is None else first
                count, end = count + 1, frame.time or 0.0
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        length = (container.duration or 0) / 1_000_000
    if first is None or rate <= 0 or not math.isfinite(rate):
        raise ImageError("corrupt", "no frame of it can be decoded", where=name, remedy=_COPY_REMEDY)
    if end + 2 / rate < 0.9 * length:
        message = f"it says it lasts {length:.1f} s, and ends after {end:.1f}"
        raise ImageError("truncated", message, where=name, remedy=_COPY_REMEDY)
    return VideoInspection(Image.fromarray(first), VideoInfo(count, round(rate, 4)), digest.hexdigest())


def frame_indices(clip: VideoInfo, fps: float, most: int, step: int) -> tuple[int, ...]:
    """The frames that are kept of a clip: as many as `most` and its length allow, one more than a multiple of
    `step`, at `fps` or the clip's own rate if that is lower."""
    stride = max(1.0, clip.fps / fps)
    available = math.floor((clip.frames - 1) / stride) + 1
    count = (min(available, most) - 1) // step * step + 1
    return tuple(math.floor(i * stride + 1e-6) for i in range(count))


def read_frames(data: bytes, name: str, wanted: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Frames (H, W, 3) by their numbers, which rise."""
    found, numbers = [], set(wanted)
    with _VideoReader(data, name) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in numbers:
                found.append(_rotated_pixels(frame))
            if len(found) == len(wanted):
                return found
    message = f"it has no frame {wanted[len(found)]}"
    raise ImageError("truncated", message, where=name, remedy="run `lorakit data prepare` again")


def first_frame(data: bytes, name: str) -> bytes:
    """The first frame as a picture file, for all that reads pictures."""
    return frame_to_ppm(Image.fromarray(read_frames(data, name, [0])[0]))


def frame_to_ppm(frame: Image.Image) -> bytes:
    """A frame as the bytes of a picture file."""
    file = io.BytesIO()
    frame.save(file, "PPM")
    return file.getvalue()


def frame_strip(film: Sequence[Image.Image]) -> Image.Image:
    """The first, middle and last frame side by side; of one frame, that frame."""
    shown = [film[i] for i in sorted({0, len(film) // 2, len(film) - 1})]
    sheet = Image.new("RGB", (sum(frame.width for frame in shown), shown[0].height))
    for place, frame in enumerate(shown):
        sheet.paste(frame, (place * frame.width, 0))
    return sheet


def encode_webp(film: Sequence[Image.Image], fps: float) -> bytes:
    """An animated WebP that plays over and over, without loss."""
    file = io.BytesIO()
    pause = round(1000 / fps)
    film[0].save(
        file, "WEBP", save_all=True, append_images=film[1:], duration=pause, loop=0, lossless=True, method=0
    )
    return file.getvalue()


class _VideoReader:
    """A clip's container and its picture stream; what goes wrong inside is an `ImageError`."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.av = data, name, import_av()
        self.container: Any = None

    def __enter__(self) -> tuple[Any, Any]:
        try:
            kind = _FORMATS[PurePosixPath(self.name).suffix.lower()]
            self.container = self.av.open(io.BytesIO(self.data), format=kind)
        except self.av.FFmpegError as error:
            raise ImageError(
                "corrupt", f"no film: {_error_text(error)}", where=self.name, remedy=_COPY_REMEDY
            ) from error
        if not self.container.streams.video:
            self.container.close()
            raise ImageError("corrupt", "it holds no pictures", where=self.name, remedy=_COPY_REMEDY)
        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        return self.container, stream

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.container.close()
        if isinstance(error, self.av.FFmpegError):
            raise ImageError(
                "corrupt", f"damaged: {_error_text(error)}", where=self.name, remedy=_COPY_REMEDY
            ) from error


def _error_text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def import_av() -> Any:
    """PyAV; without it, a `ConfigError` that names the extra."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "clips are decoded by PyAV, which is not installed",
            where="the dataset's clips",
            remedy="pip install 'lorakit[video]'",
        ) from error
    return av


def _rotated_pixels(frame: Any) -> NDArray[np.uint8]:
    """A frame's pixels (H, W, 3), turned as its container says."""
    unsaid = frame.colorspace == _UNSPECIFIED_COLORSPACE and min(frame.width, frame.height) >= _MIN_HD_LINES
    pixels = frame.to_ndarray(format="rgb24", src_colorspace="ITU709" if unsaid else None)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))
