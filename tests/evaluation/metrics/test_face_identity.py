"""Face identity: the crop that the model gets, aligned by landmarks, and images without a face."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lorakit.core.errors import ConfigError
from lorakit.evaluation.metrics import face_identity
from lorakit.evaluation.metrics.face_identity import DEFAULT_SIDE, TEMPLATE, FaceEncoder, crop_face
from lorakit.imaging.faces import Face, load_face_detector
from tests.tiny.onnx_files import mean_color_model

BOX = (30, 20, 90, 80)


def portrait(color: str, *, background: str = "white") -> Image.Image:
    image = Image.new("RGB", (160, 120), background)
    ImageDraw.Draw(image).rectangle((20, 10, 100, 90), fill=color)
    return image


def detector(image: Image.Image) -> list[Face]:
    """Detects the face of a portrait, and nothing in an image that is white all over."""
    return [] if image.getpixel((60, 50)) == (255, 255, 255) else [Face((0, 0, 12, 12)), Face(BOX)]


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaceEncoder:
    monkeypatch.setattr(face_identity, "load_face_detector", lambda file, where: detector)
    return FaceEncoder(str(mean_color_model(tmp_path / "faces.onnx", side=DEFAULT_SIDE)))


def test_the_largest_face_is_encoded_whatever_is_around_it(encoder):
    images = [portrait("teal"), portrait("teal", background="black"), portrait("orange")]
    features = encoder.image_features(images)
    assert features.shape == (3, 4)
    assert features[:, -1].tolist() == [1, 1, 1]
    expected = np.array([0, 128, 128]) / 127.5 - 1  # teal, with values from -1 to 1
    torch.testing.assert_close(
        features[0, :-1],
        torch.tensor(expected / np.linalg.norm(expected), dtype=torch.float32),
        atol=1e-4,
        rtol=0,
    )
    assert float(features[0, :-1] @ features[1, :-1]) == pytest.approx(1, abs=1e-6)
    assert float(features[0, :-1] @ features[2, :-1]) < 0.5


def test_an_image_without_a_face_is_marked(encoder):
    features = encoder.image_features([portrait("white"), portrait("teal")])
    assert features[:, -1].tolist() == [0, 1]
    assert features[0].abs().max() == 0
    assert encoder.image_features([portrait("white")]).shape == (1, 4)


@pytest.mark.parametrize("degrees", [0, 25, -40])
def test_landmarks_align_a_tilted_face(degrees):
    """Dots at the five landmarks of a turned and smaller face come to the places of the template."""
    angle, scale, center = math.radians(degrees), 0.6, np.array([90.0, 70.0])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    landmarks = (TEMPLATE - DEFAULT_SIDE / 2) @ turn.T * scale + center
    image = Image.new("RGB", (180, 140), "white")
    for x, y in landmarks:
        ImageDraw.Draw(image).ellipse((x - 3, y - 3, x + 3, y + 3), fill="black")
    aligned = np.asarray(crop_face(image, Face((0, 0, 9, 9), landmarks), DEFAULT_SIDE).convert("L"))
    assert aligned.shape == (DEFAULT_SIDE, DEFAULT_SIDE)
    for x, y in TEMPLATE.round().astype(int):
        assert aligned[y, x] < 100
    assert (aligned > 200).mean() > 0.9


def test_without_landmarks_the_box_is_enlarged_to_a_square():
    crop = crop_face(portrait("teal"), Face((40, 30, 60, 50)), 32)
    assert crop.size == (32, 32)
    assert crop.getpixel((16, 16)) == (0, 128, 128)


def test_the_description_says_how_faces_are_detected(encoder):
    description = encoder.describe()
    assert description["model"] == "faces.onnx"
    assert "not aligned" in description["detector"]
    assert description["input_size"] == DEFAULT_SIDE


def test_the_installed_detector_sees_no_face_in_a_plain_image():
    """The tests have no photograph of a person: this checks the call, not the detection."""
    detect = load_face_detector()
    assert detect(Image.new("RGB", (320, 240), "grey")) == []


def test_a_face_detector_that_cannot_be_loaded_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_face_detector(tmp_path / "yunet.onnx", "--face-detector")
    pytest.importorskip("cv2")
    (tmp_path / "yunet.onnx").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_face_detector(tmp_path / "yunet.onnx", "--face-detector")
