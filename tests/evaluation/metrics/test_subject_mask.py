"""The masked subject: cut out by a model file or by a text segmenter, alike whatever is behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lorakit.core.errors import ConfigError
from lorakit.evaluation.metrics.subject_mask import MaskedEncoder, cut_out, load_mask_model
from tests.tiny.onnx_files import mean_color_model, redness_model
from tests.tiny.segmenters import save_clipseg


def scene(background: str, *, box: tuple[int, int, int, int] | None = (20, 10, 60, 50)) -> Image.Image:
    """A red square, if there is one, in front of a background."""
    image = Image.new("RGB", (96, 64), background)
    if box:
        ImageDraw.Draw(image).rectangle(box, fill="red")
    return image


class PixelEncoder:
    """An image encoder whose features are the pixels of a small copy."""

    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        arrays = [np.asarray(image.resize((8, 8)), np.float32).reshape(-1) / 255 for image in images]
        return torch.nn.functional.normalize(torch.tensor(np.array(arrays)), dim=-1)

    def describe(self) -> dict[str, Any]:
        return {"model": "pixels"}


def test_a_model_file_finds_the_pixels_of_the_subject(tmp_path):
    model = load_mask_model(str(redness_model(tmp_path / "red.onnx")), "cpu")
    probabilities = model.probabilities(scene("navy"), None)
    assert probabilities.shape == (64, 96)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    selected = probabilities >= 0.5
    rows, columns = np.flatnonzero(selected.any(1)), np.flatnonzero(selected.any(0))
    assert abs(rows[0] - 10) <= 1
    assert abs(rows[-1] - 50) <= 1
    assert abs(columns[0] - 20) <= 1
    assert abs(columns[-1] - 60) <= 1
    assert model.describe()["model"] == "red.onnx"


@pytest.mark.parametrize("background", ["navy", "white", "green"])
def test_the_background_and_the_place_do_not_count(background, tmp_path):
    model = load_mask_model(str(redness_model(tmp_path / "red.onnx")), "cpu")
    encoder = MaskedEncoder(PixelEncoder(), model, None)
    images = [scene("black"), scene(background, box=(40, 20, 80, 60))]
    masked = encoder.image_features(images)
    assert masked[:, -1].tolist() == [1, 1]
    assert float(masked[0, :-1] @ masked[1, :-1]) > 0.98
    whole = PixelEncoder().image_features(images)
    assert float(whole[0] @ whole[1]) < 0.9


def test_an_image_without_the_subject_is_measured_whole_and_marked(tmp_path):
    model = load_mask_model(str(redness_model(tmp_path / "red.onnx")), "cpu")
    empty = scene("navy", box=None)
    features = MaskedEncoder(PixelEncoder(), model, None).image_features([empty])
    assert features[0, -1] == 0
    torch.testing.assert_close(features[:, :-1], PixelEncoder().image_features([empty]))


def test_a_cut_out_is_the_box_of_the_subject_with_a_margin_on_gray():
    selected = np.zeros((64, 96), bool)
    selected[10:50, 20:60] = True
    part = cut_out(scene("navy"), selected)
    assert part.size == (44, 44)
    assert part.getpixel((0, 0)) == (124, 116, 104)
    assert part.getpixel((22, 22)) == (255, 0, 0)
    assert cut_out(scene("navy"), np.zeros((64, 96), bool)).size == (96, 64)


def test_a_text_segmenter_looks_for_the_class_noun(tmp_path, monkeypatch):
    from lorakit.evaluation.metrics import subject_mask

    prompts = []

    class Segmenter:
        def __init__(self, folder: object, name: str, device: str) -> None:
            pass

        def probability_map(self, image: Image.Image, prompt: str) -> np.ndarray:
            prompts.append(prompt)
            return np.ones((image.height, image.width), np.float32)

    monkeypatch.setattr(subject_mask, "TextSegmenter", Segmenter)
    model = load_mask_model(str(tmp_path), "cpu")
    model.probabilities(scene("navy"), "dog")
    assert prompts == ["dog"]
    with pytest.raises(ConfigError, match="needs to know what the subject is"):
        model.probabilities(scene("navy"), None)


def test_clipseg_masks_by_the_class_noun(tmp_path):
    folder = save_clipseg(tmp_path / "tiny-clipseg")
    model = load_mask_model(str(folder), "cpu")
    first, second = (model.probabilities(scene("navy"), noun) for noun in ("dog", "teapot"))
    assert first.shape == second.shape == (64, 96)
    assert not np.allclose(first, second)
    assert model.describe()["model"] == "tiny-clipseg"
    assert len(model.describe()["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("spec", "message"),
    [("nowhere.onnx", "no such file"), ("nowhere", "does not exist"), ("./a/b", "does not exist")],
)
def test_a_mask_model_that_does_not_exist_is_an_error(spec, message):
    with pytest.raises(ConfigError, match=message):
        load_mask_model(spec, "cpu")


def test_a_model_that_gives_no_map_is_an_error(tmp_path):
    class Nothing(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.sum().reshape(1)

    torch.jit.script(Nothing()).save(str(tmp_path / "m.pt"))
    model = load_mask_model(str(tmp_path / "m.pt"), "cpu")
    with pytest.raises(ConfigError, match="gives no map"):
        model.probabilities(scene("navy"), None)
    assert mean_color_model(tmp_path / "m.onnx").is_file()
