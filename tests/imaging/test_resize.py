"""The shorter way to a training picture gives the picture of the long way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit.imaging import decode, resize
from lorakit.imaging.decode import CropBox
from lorakit.manifest import Record


def photograph(width: int, height: int) -> Image.Image:
    """Detail at every scale, like a photograph, and noise."""
    rng = np.random.default_rng(3)
    total = np.full((height, width, 3), 128.0)
    for level in range(2, 9):
        cells = rng.integers(-60 // level, 60 // level, (2**level, 2**level, 3)) + 128
        grown = Image.fromarray(cells.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(grown, np.float64) - 128
    return Image.fromarray((total + rng.normal(0, 4, total.shape)).clip(0, 255).astype(np.uint8))


def described(folder: Path, name: str) -> Record:
    given = {"background": decode.WHITE, "max_pixels": decode.MAX_PIXELS, "first_frame": False}
    source = decode.open_source((folder / name).read_bytes(), where=name, **given)  # type: ignore[arg-type]
    seen = decode.inspect_image(source)
    return Record(name, "0" * 64, seen.pixels, *seen.size)


def apart(folder: Path, record: Record, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    ours = resize.load_image_tensor(folder, record, crop, size)
    assert tuple(ours.shape) == (3, size[1], size[0])
    assert ours.is_contiguous()
    whole = np.asarray(decode.crop_and_resize(decode.read_record_image(folder, record), crop, size))
    return np.abs(ours.permute(1, 2, 0).numpy().astype(int) - whole)


@pytest.mark.parametrize("kind", ["png", "jpg", "grey", "turned", "palette"])
@pytest.mark.parametrize(
    ("crop", "size"),
    [((0, 0, 400, 300), (256, 192)), ((31, 17, 301, 289), (272, 272)), ((5, 5, 69, 69), (128, 128))],
    ids=["smaller", "as it is", "larger"],
)
def test_the_filter_is_pillows(tmp_path: Path, kind: str, crop: CropBox, size: tuple[int, int]) -> None:
    image, exif = photograph(400, 300), Image.Exif()
    name = "a.png" if kind in ("png", "palette") else "a.jpg"
    if kind == "turned":
        image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
    image = image.convert("L") if kind == "grey" else image.quantize(64) if kind == "palette" else image
    image.save(tmp_path / name, exif=exif)
    difference = apart(tmp_path, described(tmp_path, name), crop, size)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path: Path) -> None:
    photograph(2400, 1600).save(tmp_path / "a.jpg", quality=92)
    record = described(tmp_path, "a.jpg")
    for crop, size in (((0, 0, 2400, 1600), (600, 400)), ((400, 0, 2000, 1600), (512, 512))):
        pixels, _ = decode.read_record_image_scaled(tmp_path, record, crop, size)
        assert max(pixels.shape) == 1200
        difference = apart(tmp_path, record, crop, size)
        assert difference.mean() < 1.2
        assert 10 * np.log10(255**2 / np.square(difference).mean()) > 42


def test_without_torchs_filter_pillow_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph(400, 300).save(tmp_path / "a.png")
    record = described(tmp_path, "a.png")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Anti-alias option is restricted to bilinear and bicubic modes")

    monkeypatch.setattr(torch.nn.functional, "interpolate", refuse)
    assert apart(tmp_path, record, (10, 10, 390, 290), (190, 140)).max() == 0


def test_another_file_is_refused(tmp_path: Path) -> None:
    photograph(64, 64).save(tmp_path / "a.png")
    record = described(tmp_path, "a.png")
    photograph(64, 64).rotate(90).save(tmp_path / "a.png")
    with pytest.raises(decode.ImageError, match="changed since it was prepared"):
        resize.load_image_tensor(tmp_path, record, (0, 0, 64, 64), (32, 32))
