"""Small videos for tests, encoded in memory; the brightness of a frame is its number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

_SHADE = 24  # between one frame and the next
_MUXERS = {".mp4": "mp4", ".mov": "mov", ".webm": "webm", ".mkv": "matroska", ".avi": "avi"}


def encode(
    count: int,
    *,
    size: tuple[int, int] = (64, 48),
    rate: int = 8,
    name: str = "a.mp4",
    codec: str = "libx264",
    rotation: int = 0,
    seed: int = 0,
) -> bytes:
    """Encode a video of `count` frames of `size` (width, height): a coarse pattern that becomes brighter."""
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 24, (size[1] // 8, size[0] // 8, 3)).repeat(8, 0).repeat(8, 1)
    frames = [(pattern + _SHADE * i + 8 - pattern.mean()).clip(0, 255).astype(np.uint8) for i in range(count)]
    return _mux(frames, name, codec, rate, rotation)


def encode_timed(
    times: Sequence[float],
    *,
    size: tuple[int, int] = (64, 48),
    pixel_aspect: Fraction | None = None,
    codes: tuple[int, int] | None = None,
    gray: int | None = None,
) -> bytes:
    """Encode frames that are shown at `times` in seconds.

    `codes` are primaries and transfer of ITU-T H.273; `gray` makes all frames of one level.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if codes:
            stream.codec_context.color_primaries, stream.codec_context.color_trc = codes
        for number, time in enumerate(times):
            level = _SHADE * number + 8 if gray is None else gray
            pixels = np.full((size[1], size[0], 3), min(level, 255), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            if codes:
                frame.color_primaries, frame.color_trc = codes
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def encode_sound() -> bytes:
    """Encode an MP4 that holds sound only."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44_100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def frame_number(frame: NDArray[np.uint8]) -> int:
    """Return the number of a frame of `encode`."""
    return round((float(frame.mean()) - 8) / _SHADE)


def encode_color(color: tuple[int, int, int], size: tuple[int, int], matrix: str) -> bytes:
    """Encode a video of one frame of one color, with a color matrix that the file does not name."""
    frame = np.full((size[1], size[0], 3), color, np.uint8)
    encoded = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
        format="yuv444p", dst_colorspace=matrix
    )
    encoded.colorspace = 2
    return _mux([encoded], "a.mp4", "libx264", 8, 0, "yuv444p")


def _mux(
    frames: list[Any], name: str, codec: str, rate: int, rotation: int, pixels: str = "yuv420p"
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=_MUXERS[PurePosixPath(name).suffix]) as container:
        first = frames[0]
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = (
            first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        )
        stream.pix_fmt = pixels
        for frame in frames:
            encoded = (
                av.VideoFrame.from_ndarray(frame, format="rgb24") if isinstance(frame, np.ndarray) else frame
            )
            container.mux(stream.encode(encoded))
        container.mux(stream.encode())
    data = file.getvalue()
    return _with_rotation(data, rotation) if rotation else data


def _with_rotation(data: bytes, rotation: int) -> bytes:
    """Set the matrix of an MP4's track header that rotates it clockwise; PyAV writes none."""
    offset = data.index(b"tkhd") + 4 + 40  # version 0: times, ids and volume come before it
    one = (1 << 16).to_bytes(4, "big", signed=True)
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero, last = bytes(4), (1 << 30).to_bytes(4, "big")
    assert rotation == 90
    matrix = zero + one + zero + minus + zero + zero + zero + zero + last
    return data[:offset] + matrix + data[offset + 36 :]
