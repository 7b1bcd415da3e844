"""Poses by models of transformers: a detector finds the persons, ViTPose or Sapiens their joints."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from data_tools.captioners import ModelFolder
from data_tools.conditioning.skeleton import JOINTS, Points, draw_skeletons, with_neck
from lorakit.core.errors import ConfigError, first_line

MIN_PERSON_SCORE = 0.5
MIN_JOINT_SCORE = 0.3
_PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
# The order of COCO, which models of 17 points have without naming them.
_COCO = ["nose", *(f"{side}_{part}" for part in _PARTS for side in ("left", "right"))]
_SIDES = {"l": "left", "r": "right"}
Box = list[float]  # left, top, width, height in pixels


class PersonDetector:
    """An object detector that knows persons."""

    def __init__(self, model: ModelFolder, device: str) -> None:
        import transformers

        self.device, role = device, "person detector"
        self.processor: Any = model.load_pretrained(transformers.AutoImageProcessor, role)
        model_class = transformers.AutoModelForObjectDetection
        network: Any = model.load_pretrained(model_class, role, use_safetensors=True)
        self.model: Any = network.eval().requires_grad_(False).to(device)
        names = {int(index): str(name).casefold() for index, name in network.config.id2label.items()}
        self.labels = {index for index, name in names.items() if name in ("person", "human")}
        if not self.labels:
            remedy = "use one that was trained on COCO, such as PekingU/rtdetr_r50vd_coco_o365"
            raise ConfigError("this model detects no persons", where=f"{role}: {model.name}", remedy=remedy)

    def boxes(self, image: Image.Image) -> list[Box]:
        """Return the box of each person."""
        import torch

        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        (detected,) = self.processor.post_process_object_detection(
            outputs, threshold=MIN_PERSON_SCORE, target_sizes=[(image.height, image.width)]
        )
        return [
            [left, top, right - left, bottom - top]
            for label, (left, top, right, bottom) in zip(
                detected["labels"].tolist(), detected["boxes"].tolist(), strict=True
            )
            if label in self.labels and right - left >= 1 and bottom - top >= 1
        ]


class PoseEstimator:
    """A pose model, drawn in the colors of OpenPose; without a detector the whole image is one person."""

    def __init__(self, model: ModelFolder, detector: ModelFolder | None, device: str | None) -> None:
        import transformers

        from lorakit.models.device import default_device

        _require_scipy()
        self.device, role = device or default_device().type, "pose model"
        self.processor: Any = model.load_pretrained(transformers.AutoImageProcessor, role)
        model_class = transformers.AutoModelForPoseEstimation
        network: Any = model.load_pretrained(model_class, role, use_safetensors=True)
        self.model: Any = network.eval().requires_grad_(False).to(self.device)
        self.where = f"{role}: {model.name}"
        self.joints = joint_indices(network.config.id2label, self.where)
        experts = getattr(getattr(network.config, "backbone_config", None), "num_experts", 1)
        self.needs_dataset = experts > 1  # ViTPose+: the first of its experts is that of COCO
        self.detector = PersonDetector(detector, self.device) if detector else None

    def __call__(self, image: Image.Image) -> Image.Image | None:
        """Return the skeletons, RGB, of the image's size; None if there is no person in the image."""
        boxes = self.detector.boxes(image) if self.detector else [[0.0, 0.0, *map(float, image.size)]]
        persons = [points for points in self._persons(image, boxes) if points] if boxes else []
        return draw_skeletons(image.size, persons) if persons else None

    def _persons(self, image: Image.Image, boxes: list[Box]) -> list[Points]:
        import torch

        try:
            inputs = self.processor(images=image, boxes=[boxes], return_tensors="pt").to(self.device)
            if self.needs_dataset:
                inputs["dataset_index"] = torch.zeros(len(boxes), dtype=torch.long, device=self.device)
            with torch.inference_mode():
                outputs = self.model(**inputs)
            (poses,) = self.processor.post_process_pose_estimation(outputs, boxes=[boxes])
        except (TypeError, ValueError, RuntimeError) as error:
            message = f"the pose model does not take an image with boxes of persons: {first_line(error)}"
            remedy = "use a model of the kinds ViTPose or Sapiens2"
            raise ConfigError(message, where=self.where, remedy=remedy) from error
        return [self._points(pose) for pose in poses]

    def _points(self, pose: Mapping[str, Any]) -> Points:
        """Return the joints that are certain enough."""
        places = pose["keypoints"].tolist()
        scores = pose["scores"].flatten().tolist()
        points: Points = {
            joint: (places[index][0], places[index][1])
            for joint, index in self.joints.items()
            if scores[index] >= MIN_JOINT_SCORE
        }
        return with_neck(points)


def _require_scipy() -> None:
    """Raise ConfigError without scipy, which the processors of transformers need for poses."""
    if importlib.util.find_spec("scipy") is None:
        remedy = 'pip install "lorakit[pose]"'
        raise ConfigError("scipy is not installed", where="--type pose", remedy=remedy)


def joint_indices(labels: Mapping[Any, str], where: str) -> dict[str, int]:
    """Return the index of each joint of OpenPose among a model's points, but the neck, which none has.

    `labels` are the model's names of its points. Raises ConfigError if they are not those of a body.
    """
    named = {_joint_name(str(name)): int(index) for index, name in labels.items()}
    if all(re.fullmatch(r"label_\d+", name) for name in named) and len(named) in (17, 133):
        named = {joint: index for index, joint in enumerate(_COCO)}  # 133: COCO-WholeBody, the body first
    missing = [joint for joint in JOINTS if joint not in named and joint != "neck"]
    if missing:
        message = f"its points are not the joints of a body: there is no {missing[0].replace('_', ' ')}"
        raise ConfigError(message, where=where, remedy="use a model of human poses, trained on COCO")
    return {joint: named[joint] for joint in JOINTS if joint != "neck"}


def _joint_name(name: str) -> str:
    """Return the name of a point in one spelling: `L_Eye` and `left eye` become `left_eye`."""
    words = re.split(r"[\s_-]+", name.strip().casefold())
    return "_".join([_SIDES.get(words[0], words[0]), *words[1:]])
