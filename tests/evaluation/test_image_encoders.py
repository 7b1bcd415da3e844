"""Image models by name: tiny ones built from configurations, in the folders that their libraries write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from lorakit.core.errors import ConfigError
from lorakit.evaluation.metrics.image_encoders import load_image_encoder

SIDE = 32


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (64, 36), (90, 120)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> Path:
    """A ViT in the layout of timm's models on the hub."""
    torch.manual_seed(0)
    shape = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape)
    folder = tmp_path_factory.mktemp("timm") / "tiny-vit"
    folder.mkdir()
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": shape,
        "pretrained_cfg": {
            "input_size": [3, SIDE, SIDE],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic",
            "num_classes": 0,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> Path:
    """A DINOv2 in the layout of transformers."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Dinov2Model(Dinov2Config(image_size=SIDE, patch_size=8, **shape))
    folder = tmp_path_factory.mktemp("dino") / "tiny-dinov2"
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    BitImageProcessor(**sizes).save_pretrained(folder)
    return folder


def test_timm_features_are_the_models_own(timm_folder, pictures):
    eye = load_image_encoder(str(timm_folder))
    model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model) | {"crop_pct": 1.0}, is_training=False
    )
    with torch.no_grad():
        expected = F.normalize(model(torch.stack([transform(p) for p in pictures])), dim=-1)
    found = eye.image_features(pictures)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # else equality would say nothing
    assert eye.describe()["model"] == "timm:tiny-vit"
    assert len(eye.describe()["weights_sha256"]) == 64


def test_transformers_features_are_the_class_token(dino_folder, pictures):
    from transformers import AutoImageProcessor, AutoModel

    eye = load_image_encoder(str(dino_folder))
    model, processor = AutoModel.from_pretrained(dino_folder), AutoImageProcessor.from_pretrained(dino_folder)
    square = pictures[:1]
    with torch.no_grad():
        output = model(**processor(square, return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(eye.image_features(square), F.normalize(output, dim=-1), atol=2e-3, rtol=0)
    assert eye.image_features(pictures).shape == (3, 32)
    assert eye.describe()["metric"].endswith("class token")


@pytest.mark.parametrize("spec", ["timm_folder", "dino_folder"])
def test_another_resize_gives_other_features_and_is_told(spec, request, pictures):
    """What a wrong preprocessing would do: a picture that is not square is seen otherwise."""
    folder = str(request.getfixturevalue(spec))
    eyes = {mode: load_image_encoder(folder, resize=mode) for mode in ("shortest", "squash", "pad")}
    seen = {mode: eye.image_features(pictures) for mode, eye in eyes.items()}
    for mode, eye in eyes.items():
        assert eye.describe()["resize"] == mode
        torch.testing.assert_close(seen[mode][0], seen["shortest"][0])  # square: nothing to decide
    assert (seen["shortest"][1] - seen["squash"][1]).abs().max() > 1e-3
    assert (seen["pad"][1] - seen["squash"][1]).abs().max() > 1e-3


def test_pictures_shrink_with_antialiasing(timm_folder):
    """Stripes as fine as a pixel become gray; without antialiasing they would stay stripes."""
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = load_image_encoder(str(timm_folder)).preprocess(Image.fromarray(stripes))
    assert pixels.std(dim=(1, 2)).max() < 0.02


def test_sscd_is_a_torchscript_file(tmp_path, pictures):
    class Descriptor(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[:, :, ::36, ::36].flatten(1)

    file = tmp_path / "sscd.pt"
    torch.jit.script(Descriptor()).save(str(file))
    eye = load_image_encoder(f"sscd:{file}")
    found = eye.image_features(pictures)
    pixels = torch.stack([eye.preprocess(p) for p in pictures])
    assert pixels.shape == (3, 3, 288, 288)
    torch.testing.assert_close(found, F.normalize(pixels[:, :, ::36, ::36].flatten(1), dim=-1))
    assert str(tmp_path) not in json.dumps(eye.describe())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("dinov2", "names no image model"),
        ("keras:dino", "names no image model"),
        ("timm:no_such_model", "cannot load the image model"),
        ("sscd:nowhere.pt", "no such file"),
    ],
)
def test_what_cannot_be_loaded_is_one_error(spec, said):
    with pytest.raises(ConfigError, match=said):
        load_image_encoder(spec)


def test_a_folder_without_a_config_or_weights_says_so(tmp_path, dino_folder):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_image_encoder(str(tmp_path))
    (tmp_path / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="cannot load"):
        load_image_encoder(str(tmp_path))
