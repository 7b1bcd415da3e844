"""Videos: examined once, then read frame by frame; PyAV decodes them.

Tools that work on images use the first frame of a video. Training uses frames from the start of the video at
the frame rate of the base model: every second frame of a video of twice that rate, every frame of a slower
one. The presentation times decide, because phones and screen recorders write variable frame rates. Pixels
that are not square are stretched, and HDR is mapped to sRGB. Nothing is random, so the same file gives the
same frames.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorakit.core.errors import ConfigError
from lorakit.imaging import file_kinds, signatures
from lorakit.imaging.color_encoding import encoding_to_srgb, from_codes
from lorakit.imaging.image_reader import ImageError
from lorakit.manifest import VideoInfo

# The first bytes select one of these demuxers: none of them opens other files, as a playlist would.
_DEMUXERS = {
    "mov": re.compile(rb".{4}(ftyp|moov|mdat|wide|free|skip)", re.DOTALL),
    "matroska": re.compile(rb"\x1a\x45\xdf\xa3"),
    "avi": re.compile(rb"RIFF.{4}AVI ", re.DOTALL),
}
_READ_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".3gp", ".f4v", ".qt")
_OTHER_SUFFIXES = (".flv", ".wmv", ".asf", ".mpg", ".mpeg", ".m2ts", ".mts", ".vob", ".ogv", ".rm")
VIDEO_SUFFIXES = frozenset(_READ_SUFFIXES + _OTHER_SUFFIXES)  # the others so that they are named
_COPY_REMEDY = "copy it again, or save it as .mp4"
_CONVERT_REMEDY = "convert it: `ffmpeg -i INPUT OUTPUT.mp4`"
_UNSPECIFIED_COLORSPACE = 2  # of a frame whose file does not name its color space
_MAX_PIXEL_ASPECT = 20  # a larger one is damage
_MIN_HD_LINES = 720  # from this height on, players assume BT.709 for an unspecified color space


@dataclass(frozen=True)
class VideoInspection:
    """Facts about a video; `content_hash` is the hash of its coded video stream."""

    first_frame: Image.Image  # RGB, upright
    video: VideoInfo
    content_hash: str


def is_video(name: str) -> bool:
    """Return True if a file name has the extension of a video."""
    return PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES


def inspect_video(data: bytes, name: str, max_pixels: int) -> VideoInspection:
    """Decode the whole video once; ImageError if it is damaged, truncated or has more than `max_pixels`."""
    digest = hashlib.sha256(b"clip")  # a prefix of the hash, never to change
    first, times = None, []
    with _VideoReader(data, name) as (container, stream):
        codec = stream.codec_context
        if codec.width * codec.height > max_pixels:
            message = f"{codec.width}x{codec.height} is more than {max_pixels} pixels"
            raise ImageError(
                "too_many_pixels", message, where=name, remedy="scale it down, or raise --max-pixels"
            )
        for packet in container.demux(stream):
            if packet.size:
                digest.update(bytes(packet))
            for frame in packet.decode():
                first = _displayed_pixels(frame, stream) if first is None else first
                times.append(float(frame.time or 0.0))
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        duration = (container.duration or 0) / 1_000_000
    if first is None or fps <= 0 or not math.isfinite(fps):
        raise ImageError("corrupt", "no frame can be decoded", where=name, remedy=_COPY_REMEDY)
    if max(times) + 2 / fps < 0.9 * duration:
        message = f"the file states a duration of {duration:.1f} s, but ends after {max(times):.1f} s"
        raise ImageError("truncated", message, where=name, remedy=_COPY_REMEDY)
    return VideoInspection(Image.fromarray(first), _video_info(times, fps), digest.hexdigest())


def _video_info(times: Sequence[float], fps: float) -> VideoInfo:
    """Return the facts of a video, with its times if a frame is half a frame or more off a constant rate."""
    count = len(times)
    relative = [round(time - times[0], 4) for time in times]
    mean_fps = (count - 1) / relative[-1] if count > 1 and relative[-1] > 0 else fps
    is_constant = all(abs(time * fps - index) <= 0.5 for index, time in enumerate(relative))
    if is_constant or any(a >= b for a, b in itertools.pairwise(relative)):
        return VideoInfo(count, round(fps, 4))
    return VideoInfo(count, round(mean_fps, 4), tuple(relative))


def frame_indices(video: VideoInfo, fps: float, max_frames: int, multiple: int) -> tuple[int, ...]:
    """Return the indices of the frames that are trained on, at `fps` or the video's own rate if it is lower.

    Their number is at most `max_frames`, and one more than a multiple of `multiple`. Each is the frame whose
    presentation time is the nearest; where a variable rate has long pauses, a frame occurs several times.
    """
    rate = min(fps, video.fps)
    times = np.array(video.times) if video.times else np.arange(video.frames) / video.fps
    available = math.floor(times[-1] * rate + 1e-6) + 1
    count = (min(available, max_frames) - 1) // multiple * multiple + 1
    targets = np.arange(count) / rate
    after = np.searchsorted(times, targets - 1e-6).clip(0, len(times) - 1)
    before = (after - 1).clip(0)
    is_nearer = targets - times[before] <= times[after] - targets + 1e-6  # of two equally near the earlier
    return tuple(int(index) for index in np.where(is_nearer, before, after))


def read_frames(data: bytes, name: str, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Return the frames (H, W, 3) with these indices, which must be ascending; they may repeat."""
    frames: list[NDArray[np.uint8]] = []
    with _VideoReader(data, name) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index in indices[len(frames) :]:
                frames += [_displayed_pixels(frame, stream)] * indices.count(index)
            if len(frames) == len(indices):
                return frames
    message = f"it has no frame {indices[len(frames)]}"
    raise ImageError("truncated", message, where=name, remedy="run `lorakit data prepare` again")


def first_frame(data: bytes, name: str) -> bytes:
    """Return the first frame as an image file (PPM)."""
    return frame_to_ppm(Image.fromarray(read_frames(data, name, [0])[0]))


def frame_to_ppm(frame: Image.Image) -> bytes:
    """Return a frame as an image file (PPM)."""
    file = io.BytesIO()
    frame.save(file, "PPM")
    return file.getvalue()


def frame_strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Return the first, middle and last frame side by side; a single frame unchanged."""
    selected = [frames[i] for i in sorted({0, len(frames) // 2, len(frames) - 1})]
    strip = Image.new("RGB", (sum(frame.width for frame in selected), selected[0].height))
    for column, frame in enumerate(selected):
        strip.paste(frame, (column * frame.width, 0))
    return strip


def encode_webp(frames: Sequence[Image.Image], fps: float, **options: bytes) -> bytes:
    """Encode frames as a lossless animated WebP that repeats forever; `options` are `exif` and `xmp`."""
    file = io.BytesIO()
    frames[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        lossless=True,
        method=0,
        **options,
    )
    return file.getvalue()


class _VideoReader:
    """Context with the container and the video stream of a file; PyAV's errors inside become ImageError."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.av = data, name, import_av()
        self.container: Any = None

    def __enter__(self) -> tuple[Any, Any]:
        demuxer = _select_demuxer(self.data, self.name)
        try:
            self.container = self.av.open(io.BytesIO(self.data), format=demuxer)
        except self.av.FFmpegError as error:
            message = f"damaged or cut off: {_error_text(error)}"
            if demuxer == "mov" and b"moov" not in self.data:
                message = "cut off: its index (moov), which follows the frames, is missing"
            raise ImageError("corrupt", message, where=self.name, remedy=_COPY_REMEDY) from error
        if not self.container.streams.video:
            self.container.close()
            message, remedy = "it holds sound or text and no video", "move it out of the folder"
            raise ImageError("not_an_image", message, where=self.name, remedy=remedy)
        if self.container.streams.video[0].codec_context is None:
            self.container.close()
            message = "its codec has no decoder here"
            raise ImageError("unsupported_format", message, where=self.name, remedy=_CONVERT_REMEDY)
        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        return self.container, stream

    def __exit__(self, error_type: Any, error: BaseException | None, traceback: Any) -> None:
        self.container.close()
        if isinstance(error, self.av.FFmpegError):
            raise ImageError(
                "corrupt", f"damaged: {_error_text(error)}", where=self.name, remedy=_COPY_REMEDY
            ) from error


def _select_demuxer(data: bytes, name: str) -> str:
    """Return the demuxer of a file by its content; ImageError for a file that is not a video that is read."""
    for demuxer, pattern in _DEMUXERS.items():
        if pattern.match(data):
            return demuxer
    problem = signatures.detect_non_image(data)
    if problem is None or problem.code == "not_an_image":
        problem = file_kinds.identify_by_guess(data) or problem
    code, message, remedy = "unknown_format", "not a supported video format", _CONVERT_REMEDY
    if problem and problem.code == "video_file":
        code = "unsupported_format"
        message = problem.message.replace(", not an image", ": a container that is not supported")
    elif problem:
        code, message = problem.code, re.sub("not (an|the) image", "not a video", problem.message)
        remedy = problem.remedy or remedy
    raise ImageError(code, message, where=name, remedy=remedy)


def _error_text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def import_av() -> Any:
    """Import PyAV; ConfigError that names the extra if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            "videos need PyAV, which is not installed",
            where="the dataset's videos",
            remedy="pip install 'lorakit[video]'",
        ) from error
    return av


def _displayed_pixels(frame: Any, stream: Any) -> NDArray[np.uint8]:
    """Return a frame as players display it (H, W, 3): square pixels, sRGB, rotated as the file states."""
    unspecified = (
        frame.colorspace == _UNSPECIFIED_COLORSPACE and min(frame.width, frame.height) >= _MIN_HD_LINES
    )
    pixel_aspect = float(stream.sample_aspect_ratio or 1)
    width, height = frame.width, frame.height
    if 1 / _MAX_PIXEL_ASPECT < pixel_aspect < 1:
        height = round(height / pixel_aspect)
    elif 1 < pixel_aspect < _MAX_PIXEL_ASPECT:
        width = round(width * pixel_aspect)
    pixels = frame.to_ndarray(
        format="rgb24", width=width, height=height, src_colorspace="ITU709" if unspecified else None
    )
    encoding = from_codes(int(frame.color_primaries), int(frame.color_trc))
    if not encoding.is_srgb:
        pixels = np.asarray(encoding_to_srgb(Image.fromarray(pixels), encoding))
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))
