"""Fast loading of training images gives the same pixels as Pillow."""

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
    """An image with detail at every scale, like a photograph, and noise."""
    rng = np.random.default_rng(3)
    total = np.full((height, width, 3), 128.0)
    for level in range(2, 9):
        cells = rng.integers(-60 // level, 60 // level, (2**level, 2**level, 3)) + 128
        grown = Image.fromarray(cells.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(grown, np.float64) - 128
    return Image.fromarray((total + rng.normal(0, 4, total.shape)).clip(0, 255).astype(np.uint8))


def make_record(folder: Path, name: str) -> Record:
    options = {"background": decode.WHITE, "max_pixels": decode.MAX_PIXELS, "first_frame": False}
    source = decode.open_source((folder / name).read_bytes(), where=name, **options)  # type: ignore[arg-type]
    info = decode.inspect_image(source)
    return Record(name, "0" * 64, info.content_hash, *info.size)


def difference_to_pillow(folder: Path, record: Record, crop: CropBox, size: tuple[int, int]) -> np.ndarray:
    ours = resize.load_image_tensor(folder, record, crop, size)
    assert tuple(ours.shape) == (3, size[1], size[0])
    assert ours.is_contiguous()
    whole = np.asarray(decode.crop_and_resize(decode.read_record_image(folder, record), crop, size))
    return np.abs(ours.permute(1, 2, 0).numpy().astype(int) - whole)


@pytest.mark.parametrize("variant", ["png", "jpg", "gray", "rotated", "palette"])
@pytest.mark.parametrize(
    ("crop", "size"),
    [((0, 0, 400, 300), (256, 192)), ((31, 17, 301, 289), (272, 272)), ((5, 5, 69, 69), (128, 128))],
    ids=["smaller", "same size", "larger"],
)
def test_the_filter_gives_the_pixels_of_pillow(
    tmp_path: Path, variant: str, crop: CropBox, size: tuple[int, int]
) -> None:
    image, exif = photograph(400, 300), Image.Exif()
    name = "a.png" if variant in ("png", "palette") else "a.jpg"
    if variant == "rotated":
        image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
    image = image.convert("L") if variant == "gray" else image.quantize(64) if variant == "palette" else image
    image.save(tmp_path / name, exif=exif)
    difference = difference_to_pillow(tmp_path, make_record(tmp_path, name), crop, size)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


def test_a_large_jpeg_is_decoded_at_reduced_size_with_the_same_result(tmp_path: Path) -> None:
    photograph(2400, 1600).save(tmp_path / "a.jpg", quality=92)
    record = make_record(tmp_path, "a.jpg")
    for crop, size in (((0, 0, 2400, 1600), (600, 400)), ((400, 0, 2000, 1600), (512, 512))):
        scaled = decode.read_record_image_scaled(tmp_path, record, crop, size)
        assert max(scaled.pixels.shape) == 1200
        difference = difference_to_pillow(tmp_path, record, crop, size)
        assert difference.mean() < 1.2
        assert 10 * np.log10(255**2 / np.square(difference).mean()) > 42


def test_pillow_is_used_if_torch_does_not_have_the_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(400, 300).save(tmp_path / "a.png")
    record = make_record(tmp_path, "a.png")

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Anti-alias option is restricted to bilinear and bicubic modes")

    monkeypatch.setattr(torch.nn.functional, "interpolate", refuse)
    assert difference_to_pillow(tmp_path, record, (10, 10, 390, 290), (190, 140)).max() == 0


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    photograph(64, 64).save(tmp_path / "a.png")
    record = make_record(tmp_path, "a.png")
    photograph(64, 64).rotate(90).save(tmp_path / "a.png")
    with pytest.raises(decode.ImageError, match="has changed since the dataset was prepared"):
        resize.load_image_tensor(tmp_path, record, (0, 0, 64, 64), (32, 32))
