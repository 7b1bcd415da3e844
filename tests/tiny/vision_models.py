"""Tiny models of depth, persons and poses with random weights, in the folders that transformers writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch


def save_depth(folder: Path, **changes: object) -> Path:
    """Save a Depth Anything; `changes` are keys of its configuration."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=28,
        patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, patch_size=14, neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8, head_hidden_size=8, **changes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DepthAnythingForDepthEstimation(config)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def save_detector(folder: Path, labels: Sequence[str], detected: str | None) -> Path:
    """Save a YOLOS that gives every query the label `detected`, or none."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=16, num_detection_tokens=2, id2label=dict(enumerate(labels)),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = YolosForObjectDetection(config)
    chosen = labels.index(detected) if detected else len(labels)
    with torch.no_grad():
        last = model.class_labels_classifier.layers[-1]
        last.bias.copy_(20.0 * (torch.arange(len(last.bias)) == chosen))
    model.save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_pose(folder: Path, labels: Sequence[str] = (), *, count: int = 17, experts: int = 1) -> Path:
    """Save a ViTPose of `count` points, which are all over the image; unnamed without `labels`."""
    from transformers import (
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessor,
    )

    mixture = {"num_experts": experts, "part_features": 4} if experts > 1 else {}
    backbone = VitPoseBackboneConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=[64, 48], patch_size=[16, 16],
        out_indices=[1], **mixture,
    )  # fmt: skip
    names = dict(enumerate(labels or [f"LABEL_{index}" for index in range(count)]))
    config = VitPoseConfig(backbone_config=backbone, id2label=names, use_simple_decoder=True, scale_factor=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VitPoseForPoseEstimation(config)
    with torch.no_grad():
        model.head.conv.weight.mul_(50)
    model.save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder
