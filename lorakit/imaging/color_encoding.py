"""Color encodings without an ICC profile: CICP codes (PNG, AVIF, HEIF), and PNG's gAMA and cHRM.

Codes are those of ITU-T H.273. Of two descriptions in one file the same one is used as in browsers: for PNG
cICP, the ICC profile, sRGB, then gAMA with cHRM (PNG 3, section 4.3); for AVIF and HEIF the ICC profile, then
nclx. The transfer of BT.709 is a gamma of 2.4 in PNG, and sRGB in AVIF and HEIF. Measured against Chromium on
eight colors, 16 codes of transfer and 10 of primaries: at most 3 of 255 levels apart for SDR, and 2 for HDR.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorakit.imaging import iso_boxes

FloatArray = NDArray[np.float64]
Chromaticities = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
"""The xy of red, green, blue and white."""

_D65, _C, _E, _DCI = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3), (0.314, 0.351)
SRGB_PRIMARIES: Chromaticities = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
_SMPTE_170M: Chromaticities = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65)
_PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB_PRIMARIES,
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: _SMPTE_170M,
    7: _SMPTE_170M,
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    10: ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), _E),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _DCI),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
_BT709_LIKE = (1, 6, 11, 14, 15)
_GAMMAS = {4: 2.2, 5: 2.8}
PQ, HLG, LINEAR, SMPTE_240M, SMPTE_428 = 16, 18, 8, 7, 17
_OTHER_CURVES = (PQ, HLG, LINEAR, SMPTE_240M, SMPTE_428)
_REFERENCE_WHITE, _PEAK = 203.0, 1000.0  # cd/m2 of diffuse white and of the brightest light (BT.2408)
_CURVATURE = 0.65  # of the tone curve above white
_GAMMA_OF_SRGB = 0.45455
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_ROWS = 256  # of an image converted at a time


@dataclass(frozen=True)
class ColorEncoding:
    """Primaries and transfer of an image: a code of H.273, or a gamma; 13 is sRGB.

    `peak` is the luminance in cd/m2 of the brightest light of an HDR image.
    """

    primaries: Chromaticities = SRGB_PRIMARIES
    transfer: int = 13
    gamma: float | None = None
    peak: float = 1000.0

    @property
    def is_srgb(self) -> bool:
        """True if no color changes."""
        return self.primaries == SRGB_PRIMARIES and self.transfer == 13 and self.gamma is None

    @property
    def is_hdr(self) -> bool:
        """True for light that is brighter than white."""
        return self.transfer in (PQ, HLG)

    def describe(self) -> str:
        """Return the name for a note, such as `Display P3`."""
        names = {_PRIMARIES[9]: "BT.2020", _PRIMARIES[12]: "Display P3", SRGB_PRIMARIES: "BT.709"}
        transfers = {PQ: "PQ", HLG: "HLG", LINEAR: "linear light", 13: "sRGB curve"}
        transfer = f"gamma {self.gamma:.3g}" if self.gamma else transfers.get(self.transfer, "other curve")
        return f"{names.get(self.primaries, 'other primaries')}, {transfer}"


def read_color_encoding(data: bytes, *, has_icc: bool) -> ColorEncoding | None:
    """Return the color encoding that a file states outside of an ICC profile and that applies; else None."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_encoding(dict(_png_chunks(data)), has_icc)
    if data[4:8] == b"ftyp" and not has_icc:
        color = iso_boxes.primary_color(data)
        if color is None:
            return None
        peak = struct.unpack_from(">H", color.content_light)[0] if len(color.content_light) == 4 else 0
        return from_codes(color.primaries, color.transfer, peak or _mastering_peak(color.mastering_display))
    return None


def _mastering_peak(display: bytes) -> float:
    """Return the highest luminance of a mastering display in cd/m2; 0 if it is not stated."""
    return struct.unpack_from(">I", display, 16)[0] / 10_000 if len(display) == 24 else 0.0


def from_codes(primaries: int, transfer: int, peak: float = 0.0) -> ColorEncoding:
    """Return the encoding of an AVIF, HEIF or video with these codes; unknown ones mean sRGB.

    `peak` is the luminance in cd/m2 of the brightest light of an HDR image; 0 if it is not known.
    """
    known = _PRIMARIES.get(primaries, SRGB_PRIMARIES)
    if transfer in _GAMMAS:
        return ColorEncoding(known, gamma=_GAMMAS[transfer])
    if transfer in (PQ, HLG) and peak:
        return ColorEncoding(known, transfer, peak=float(np.clip(peak, _REFERENCE_WHITE, 10_000)))
    return ColorEncoding(known, transfer if transfer in _OTHER_CURVES else 13)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and content of the chunks before the pixels."""
    offset = 8
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        name = data[offset + 4 : offset + 8]
        if name in (b"IDAT", b"IEND"):
            return
        yield name, data[offset + 8 : offset + 8 + length]
        offset += 12 + length


def _png_encoding(chunks: dict[bytes, bytes], has_icc: bool) -> ColorEncoding | None:
    cicp = chunks.get(b"cICP", b"")
    if len(cicp) == 4:
        primaries, transfer = cicp[:2]
        if transfer in _BT709_LIKE:
            return ColorEncoding(_PRIMARIES.get(primaries, SRGB_PRIMARIES), gamma=2.4)
        light = chunks.get(b"cLLI", b"")
        peak = struct.unpack_from(">I", light)[0] / 10_000 if len(light) == 8 else 0.0
        return from_codes(primaries, transfer, peak or _mastering_peak(chunks.get(b"mDCV", b"")))
    if has_icc or b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return None
    gamma = struct.unpack(">I", chunks[b"gAMA"])[0] / 100_000
    primaries_chunk = chunks.get(b"cHRM", b"")
    if not 0.1 <= gamma <= 10:
        return None
    if len(primaries_chunk) == 32:
        white, red, green, blue = struct.iter_unpack(">2I", primaries_chunk)
        x, y = zip(*((a / 100_000, b / 100_000) for a, b in (red, green, blue, white)), strict=True)
        if min(y) > 0 and max(*x, *y) < 1:
            return ColorEncoding(tuple(zip(x, y, strict=True)), gamma=1 / gamma)  # type: ignore[arg-type]
    return None if abs(gamma - _GAMMA_OF_SRGB) < 0.01 else ColorEncoding(gamma=1 / gamma)


def encoding_to_srgb(image: Image.Image, encoding: ColorEncoding) -> Image.Image:
    """Convert an 8-bit RGB image of an encoding to sRGB; light above white is mapped into the range."""
    pixels = np.asarray(image.convert("RGB"))
    to_light = _light_table(encoding.transfer, encoding.gamma)
    to_xyz, to_srgb = _xyz_of(encoding.primaries), _xyz_of(SRGB_PRIMARIES, inverse=True)
    to_bt2020, from_bt2020 = _xyz_of(_PRIMARIES[9], inverse=True), _xyz_of(_PRIMARIES[9])
    steps = [to_bt2020 @ to_xyz, to_srgb @ from_bt2020] if encoding.is_hdr else [to_srgb @ to_xyz]
    matrices = [step.T.astype(np.float32) for step in steps]
    luminance = to_xyz[1].astype(np.float32)
    converted = np.empty_like(pixels)
    for start in range(0, len(pixels), _ROWS):
        light = to_light[pixels[start : start + _ROWS]]  # (rows, W, 3)
        if encoding.transfer == HLG:
            light = _PEAK / _REFERENCE_WHITE * light * (light @ luminance)[..., None] ** 0.2
        light = light @ matrices[0]
        if encoding.is_hdr:
            light = _tone_map(light, encoding.peak / _REFERENCE_WHITE) @ matrices[1]
        converted[start : start + _ROWS] = _encode_srgb(light)
    return Image.fromarray(converted)


def _xyz_of(primaries: Chromaticities, *, inverse: bool = False) -> FloatArray:
    """Return the matrix (3, 3) from linear RGB to XYZ under D65, or its inverse."""
    xy = np.array(primaries)
    columns = np.stack([xy[:, 0], xy[:, 1], 1 - xy.sum(1)]) / np.where(xy[:, 1] == 0, 1, xy[:, 1])
    columns[:, xy[:, 1] == 0] = np.stack([xy[:, 0], xy[:, 1], 1 - xy.sum(1)])[:, xy[:, 1] == 0]
    white = columns[:, 3]
    to_xyz = columns[:, :3] * np.linalg.solve(columns[:, :3], white)
    d65 = np.array([_D65[0], _D65[1], 1 - sum(_D65)]) / _D65[1]
    cones = np.diag((_BRADFORD @ d65) / (_BRADFORD @ white))
    adapted: FloatArray = np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ to_xyz
    return np.asarray(np.linalg.inv(adapted) if inverse else adapted, np.float64)


@functools.lru_cache(maxsize=16)
def _light_table(transfer: int, gamma: float | None) -> NDArray[np.float32]:
    """Return the linear light (256,) of each level; 1 is diffuse white."""
    level = np.arange(256) / 255
    if gamma is not None:
        return (level**gamma).astype(np.float32)
    curves: dict[int, Callable[[FloatArray], FloatArray]] = {
        PQ: _pq_light,
        HLG: _hlg_light,
        LINEAR: lambda value: value,
        SMPTE_428: lambda value: 52.37 / 48 * value**2.6,
        SMPTE_240M: lambda v: np.where(v < 0.0913, v / 4, ((v + 0.1115) / 1.1115) ** (1 / 0.45)),
    }
    return curves.get(transfer, _srgb_light)(level).astype(np.float32)


def _srgb_light(value: FloatArray) -> FloatArray:
    light: FloatArray = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return light


def _pq_light(value: FloatArray) -> FloatArray:
    """SMPTE ST 2084, relative to diffuse white."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = value ** (1 / m2)
    nits: FloatArray = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return nits / _REFERENCE_WHITE


def _hlg_light(value: FloatArray) -> FloatArray:
    """ARIB STD-B67: the light of the scene; its system gamma of 1.2 needs the luminance."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light: FloatArray = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    return light


def _tone_map(light: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """Map light up to the peak into 0..1, by the largest channel so that hues stay.

    The curve of SMPTE ST 2094-50 that browsers use: a line up to white, which becomes as much darker as the
    peak is brighter, then a parabola (a quadratic Bezier curve) up to the peak.
    """
    white = 1 - 0.5 * min(1.0, math.log(peak) / math.log(_PEAK / _REFERENCE_WHITE))
    middle = 1 - _CURVATURE + _CURVATURE / white
    largest = np.clip(light.max(-1, keepdims=True), 1e-6, None)
    bounded = np.minimum(largest, peak)
    a, b, c = 1 - 2 * middle + peak, 2 * (middle - 1), np.minimum(1 - bounded, 0)
    root = np.sqrt(np.maximum(b * b - 4 * a * c, 0))
    t = -2 * c / np.maximum(b + root, 1e-6)  # the place on the Bezier curve
    above = (1 - t) ** 2 * white + 2 * t * (1 - t) * middle * white + t**2
    mapped: NDArray[np.float32] = light * (np.where(bounded <= 1, white * bounded, above) / largest)
    return mapped.astype(np.float32)


def _encode_srgb(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    value = np.clip(light, 0, 1)
    encoded = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    levels: NDArray[np.uint8] = np.rint(255 * encoded).astype(np.uint8)
    return levels
