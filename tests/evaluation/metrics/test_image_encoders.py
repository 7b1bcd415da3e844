"""Image encoders by name: tiny models in the folders that their libraries write."""

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
def images() -> list[Image.Image]:
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


def test_timm_features_equal_the_models_own(timm_folder, images):
    encoder = load_image_encoder(str(timm_folder), resize="shortest")
    model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model) | {"crop_pct": 1.0}, is_training=False
    )
    with torch.no_grad():
        expected = F.normalize(model(torch.stack([transform(p) for p in images])), dim=-1)
    features = encoder.image_features(images)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # otherwise equality would prove nothing
    assert encoder.describe()["model"] == "timm:tiny-vit"
    assert len(encoder.describe()["weights_sha256"]) == 64


def test_transformers_features_are_the_class_token(dino_folder, images):
    from transformers import AutoImageProcessor, AutoModel

    encoder = load_image_encoder(str(dino_folder))
    model, processor = AutoModel.from_pretrained(dino_folder), AutoImageProcessor.from_pretrained(dino_folder)
    square = images[:1]
    with torch.no_grad():
        output = model(**processor(square, return_tensors="pt")).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.image_features(square), F.normalize(output, dim=-1), atol=2e-3, rtol=0)
    assert encoder.image_features(images).shape == (3, 32)
    assert encoder.describe()["metric"].endswith("class token")


@pytest.mark.parametrize("spec", ["timm_folder", "dino_folder"])
def test_another_resize_gives_other_features_and_is_described(spec, request, images):
    """An image that is not square has other features with another preprocessing."""
    folder = str(request.getfixturevalue(spec))
    encoders = {mode: load_image_encoder(folder, resize=mode) for mode in ("shortest", "squash", "pad")}
    features = {mode: encoder.image_features(images) for mode, encoder in encoders.items()}
    assert load_image_encoder(folder).describe()["resize"] == "pad"
    for mode, encoder in encoders.items():
        assert encoder.describe()["resize"] == mode
        torch.testing.assert_close(
            features[mode][0], features["shortest"][0]
        )  # a square image is not cropped
    assert (features["shortest"][1] - features["squash"][1]).abs().max() > 1e-3
    assert (features["pad"][1] - features["squash"][1]).abs().max() > 1e-3


def test_images_are_downscaled_with_antialiasing(timm_folder):
    """Stripes of one pixel become gray; without antialiasing they would stay stripes."""
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = load_image_encoder(str(timm_folder)).preprocess(Image.fromarray(stripes))
    assert pixels.std(dim=(1, 2)).max() < 0.02


def test_sscd_is_a_torchscript_file(tmp_path, images):
    class Descriptor(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[:, :, ::36, ::36].flatten(1)

    file = tmp_path / "sscd.pt"
    torch.jit.script(Descriptor()).save(str(file))
    encoder = load_image_encoder(f"sscd:{file}")
    features = encoder.image_features(images)
    pixels = torch.stack([encoder.preprocess(p) for p in images])
    assert pixels.shape == (3, 3, 288, 288)
    torch.testing.assert_close(features, F.normalize(pixels[:, :, ::36, ::36].flatten(1), dim=-1))
    assert str(tmp_path) not in json.dumps(encoder.describe())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dinov2", "is not an image encoder"),
        ("keras:dino", "is not an image encoder"),
        ("timm:no_such_model", "cannot load the image encoder"),
        ("sscd:nowhere.pt", "no such file"),
    ],
)
def test_an_encoder_that_cannot_be_loaded_is_a_config_error(spec, message):
    with pytest.raises(ConfigError, match=message):
        load_image_encoder(spec)


def test_a_folder_without_a_config_or_weights_is_a_config_error(tmp_path, dino_folder):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_image_encoder(str(tmp_path))
    (tmp_path / "config.json").write_bytes((dino_folder / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="cannot load"):
        load_image_encoder(str(tmp_path))
