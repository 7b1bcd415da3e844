"""Tests of WD taggers in ONNX: the pixels that the model gets, its tags, and files that are other models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from data_tools.captioners import CaptionerOptions, CaptionRequest, load_captioner
from data_tools.captioners.model_folder import ModelFolder
from data_tools.prepare import PrepareOptions, caption_dataset
from lorakit.core.errors import ConfigError
from lorakit.models import hub
from tests.data_tools.captioners.onnx_taggers import onnx_tagger
from tests.data_tools.folders import fill

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("batch", ["N", 1])
def test_tags_come_from_a_white_square_in_blue_green_red_order(tmp_path: Path, batch: int | str) -> None:
    folder = onnx_tagger(tmp_path / "wd", batch=batch)
    captioner = load_captioner(
        CaptionerOptions(model=str(folder), threshold=0.6, character_threshold=0.6, device="cpu")
    )
    blue, red = Image.new("RGB", (8, 8), (0, 0, 255)), Image.new("RGB", (8, 8), (255, 51, 0))
    wide = Image.new("RGB", (8, 2), (0, 0, 0))  # three quarters of the square are white
    answers = captioner.caption([CaptionRequest(image, "") for image in (blue, red, wide)])
    assert [answer.tags for answer in answers] == [("blue sky",), ("red",), ("red", "blue sky", "green")]
    assert captioner.name == "wd"


def test_tags_reach_the_manifest(tmp_path: Path) -> None:
    model, folder = onnx_tagger(tmp_path / "wd"), fill(tmp_path / "d", {"a.png": None}, size=(64, 48))
    captioner = CaptionerOptions(model=str(model), threshold=0.0, character_threshold=0.0, device="cpu")
    (record,) = caption_dataset(folder, PrepareOptions(quiet=True, captioner=captioner)).records
    assert set(record.tags) == {"red", "green", "blue sky"}
    assert record.captions[0].model == "wd"


def test_another_tagger_in_onnx_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = load_captioner(CaptionerOptions(model=str(onnx_tagger(tmp_path / "cl", channels_last=False))))
    request = CaptionRequest(Image.new("RGB", (8, 8)), "")
    with pytest.raises(ConfigError, match="takes an input of N x 3 x 4 x 4, not square images"):
        captioner.caption([request])
    (tmp_path / "cl" / "model.onnx").write_bytes(b"damaged")
    captioner = load_captioner(CaptionerOptions(model=str(tmp_path / "cl")))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        captioner.caption([request])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="ONNX files cannot be read here") as caught:
        captioner.caption([request])
    assert "safetensors" in str(caught.value.remedy)


def test_the_onnx_file_of_a_hub_id_is_downloaded_if_there_are_no_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[tuple[str, ...]] = []

    def download(spec: str, patterns: tuple[str, ...], role: str) -> Path:
        requested.append(tuple(patterns))
        folder = onnx_tagger(tmp_path / "0123456789abcdef")
        if "model.onnx" not in patterns:
            (folder / "model.onnx").unlink()
        return folder

    monkeypatch.setattr(hub, "download_model", download)
    captioner = load_captioner(CaptionerOptions(model="owner/wd-v1-4"))
    assert captioner.name == "owner/wd-v1-4@0123456789ab"
    assert ["model.onnx" in patterns for patterns in requested] == [False, True]
    assert ModelFolder.resolve("owner/wd-v1-4").folder.name == "0123456789abcdef"
