"""Poses: the joints of a model become a skeleton in the colors of OpenPose."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.captioners import ModelFolder
from data_tools.conditioning import pose
from data_tools.conditioning.controls import ControlOptions, control_size
from data_tools.conditioning.pose import PoseEstimator, joint_indices
from data_tools.conditioning.skeleton import COLORS, JOINTS, LIMBS, draw_skeletons, with_neck
from data_tools.prepare import PrepareOptions, generate_dataset_controls, prepare_dataset
from lorakit.core.errors import ConfigError
from tests.data_tools.folders import fill, photo
from tests.tiny.vision_models import save_detector, save_pose

OPTIONS = PrepareOptions(resolution=64, quiet=True, class_noun="x", report=False)
COCO = (
    "Nose L_Eye R_Eye L_Ear R_Ear L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist L_Hip R_Hip L_Knee"
    " R_Knee L_Ankle R_Ankle"
)
STANDING = {
    "nose": (100, 40), "right_shoulder": (80, 80), "left_shoulder": (120, 80), "right_elbow": (60, 120),
    "left_elbow": (140, 120), "right_wrist": (50, 160), "left_wrist": (150, 160), "right_hip": (90, 160),
    "left_hip": (110, 160), "right_knee": (88, 210), "left_knee": (112, 210), "right_ankle": (86, 260),
    "left_ankle": (114, 260), "right_eye": (92, 32), "left_eye": (108, 32), "right_ear": (84, 38),
    "left_ear": (116, 38),
}  # fmt: skip


def test_a_skeleton_has_the_colors_of_openpose() -> None:
    points = with_neck(dict(STANDING))
    assert points["neck"] == (100, 80)
    pixels = np.asarray(draw_skeletons((200, 300), [points]))
    # Nose red, neck orange, right wrist yellow-green, left hip sky blue: published figures of OpenPose.
    published = {
        "nose": (255, 0, 0),
        "neck": (255, 85, 0),
        "right_wrist": (170, 255, 0),
        "left_hip": (0, 85, 255),
    }
    for joint, color in published.items():
        x, y = points[joint]
        assert tuple(pixels[int(y), int(x)]) == color
    middle_of = {("right_hip", "right_knee"): (0, 255, 85), ("neck", "nose"): (0, 0, 255)}
    for (first, second), color in middle_of.items():
        x, y = (sum(pair) / 2 for pair in zip(points[first], points[second], strict=True))
        assert np.allclose(pixels[round(y), round(x)], np.multiply(color, 0.6), atol=1)
    assert len(JOINTS) == len(COLORS) == 18 == len(LIMBS) + 1
    assert not pixels[290, 190].any()


def test_joints_that_are_missing_are_left_out_and_persons_are_drawn_side_by_side() -> None:
    head = {name: STANDING[name] for name in ("nose", "left_eye", "left_shoulder")}
    assert "neck" not in with_neck(dict(head))
    pixels = np.asarray(draw_skeletons((400, 300), [head, {"left_ankle": (300, 250)}]))
    assert pixels[40, 100].any()
    assert tuple(pixels[250, 300]) == COLORS[JOINTS.index("left_ankle")]
    assert not pixels[80, 80].any()  # the right shoulder
    edge = draw_skeletons((50, 50), [{"nose": (-30.0, 20.0), "left_eye": (500.0, 70.0)}])  # beyond the image
    assert edge.size == (50, 50)


@pytest.mark.parametrize(
    "labels",
    [
        dict(enumerate(COCO.split())),
        {index: f"LABEL_{index}" for index in range(17)},
        {index: f"LABEL_{index}" for index in range(133)},
        dict(enumerate(name.replace("L_", "left ").replace("R_", "right ") for name in COCO.split())),
    ],
)
def test_joints_are_recognized_by_name_or_by_the_order_of_coco(labels: dict[int, str]) -> None:
    indices = joint_indices(labels, "pose model")
    assert (indices["nose"], indices["left_eye"], indices["right_eye"], indices["right_ankle"]) == (
        0,
        1,
        2,
        16,
    )
    assert set(indices) == set(JOINTS) - {"neck"}


@pytest.mark.parametrize("labels", [dict(enumerate(["nose", "tail"])), {n: f"LABEL_{n}" for n in range(21)}])
def test_points_that_are_not_of_a_body_are_refused(labels: dict[int, str]) -> None:
    with pytest.raises(ConfigError, match="not the joints of a body"):
        joint_indices(labels, "pose model")


@pytest.mark.parametrize("experts", [1, 2])
def test_poses_of_a_model_are_recorded(tmp_path: Path, experts: int) -> None:
    save_pose(tmp_path / "vitpose", COCO.split(), experts=experts)
    fill(tmp_path / "d", {"a.png": None}, size=(90, 60))
    prepare_dataset(tmp_path / "d", OPTIONS)
    options = ControlOptions("pose", model=str(tmp_path / "vitpose"))
    (record,) = generate_dataset_controls(tmp_path / "d", options).records
    assert record.conditioning_images[0].origin == "generated: pose vitpose"
    pixels = np.asarray(Image.open(tmp_path / "d" / record.conditioning_images[0].file))
    assert pixels.shape == (*control_size(record)[::-1], 3)
    assert pixels.any()


@pytest.mark.parametrize("detected", ["person", "dog", None])
def test_only_persons_that_the_detector_finds_get_a_pose(tmp_path: Path, detected: str | None) -> None:
    model = save_pose(tmp_path / "vitpose")
    detector = save_detector(tmp_path / "yolos", ["dog", "person"], detected)
    fill(tmp_path / "d", {"a.png": None}, size=(90, 60))
    prepare_dataset(tmp_path / "d", OPTIONS)
    options = ControlOptions("pose", model=str(model), detector=str(detector))
    result = generate_dataset_controls(tmp_path / "d", options)
    (record,) = result.records
    origins = [image.origin for image in record.conditioning_images]
    assert origins == (["generated: pose vitpose yolos"] if detected == "person" else [])
    codes = {finding.code: finding.level for finding in result.findings}
    assert codes.get("pose_not_found") == (None if detected == "person" else "warning")


def test_the_box_of_a_person_decides_where_its_joints_are(tmp_path: Path) -> None:
    model = ModelFolder.resolve(str(save_pose(tmp_path / "vitpose")), "pose model")
    estimator = PoseEstimator(model, None, "cpu")
    image = photo(1, (200, 100))
    (left,) = estimator._persons(image, [[0.0, 0.0, 75.0, 100.0]])
    shifted = Image.new("RGB", (300, 100))
    shifted.paste(image, (100, 0))
    (right,) = estimator._persons(shifted, [[100.0, 0.0, 75.0, 100.0]])
    inner = {joint for joint, (x, y) in left.items() if 10 < x < 65 and 10 < y < 90} & set(right)
    assert inner
    for joint in inner:
        assert right[joint][0] - left[joint][0] == pytest.approx(100, abs=12)


def test_models_that_know_no_person_or_no_pose_are_refused(tmp_path: Path) -> None:
    model = save_pose(tmp_path / "vitpose")
    for options, words in (
        ({"detector": str(save_detector(tmp_path / "cats", ["cat"], "cat"))}, "detects no persons"),
        ({"detector": str(tmp_path / "none")}, "does not exist"),
        ({"model": str(tmp_path / "cats")}, "cannot be loaded"),
    ):
        fill(tmp_path / "d", {"a.png": None}, size=(90, 60))
        prepare_dataset(tmp_path / "d", OPTIONS)
        with pytest.raises(ConfigError, match=words):
            generate_dataset_controls(
                tmp_path / "d", ControlOptions("pose", **{"model": str(model), **options})
            )


def test_without_scipy_poses_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    model = ModelFolder.resolve(str(save_pose(tmp_path / "vitpose")), "pose model")
    with pytest.raises(ConfigError, match="scipy") as caught:
        PoseEstimator(model, None, "cpu")
    assert "lorakit[pose]" in str(caught.value.remedy)
    assert pose.MIN_JOINT_SCORE == 0.3
