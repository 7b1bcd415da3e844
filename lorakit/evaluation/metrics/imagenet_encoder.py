"""An image encoder that needs no network: EfficientNet-Lite0, trained on ImageNet, from a Python package.

The package holds one file of weights (17 MB, Apache-2.0). It is found by its name, never imported; its bytes
must have the pinned hash before torch reads them, as tensors only.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import torch

from lorakit.core.checksums import sha256_file
from lorakit.core.errors import ConfigError, DataError
from lorakit.models.offline_judges import IMAGENET_INSTALL, IMAGENET_PACKAGE, IMAGENET_VERSION

IMAGENET = "imagenet"
"""The name of this encoder in options."""
ARCHITECTURE = "tf_efficientnet_lite0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE, MEAN, STD = 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_FILE = "efficientnet-lite0-57934424.pth"
_COUNTER = "num_batches_tracked"


def is_installed() -> bool:
    """Return True if the package with the weights is installed."""
    return _weights_file() is not None


def load_model() -> torch.nn.Module:
    """Return the network without its classifier; it maps pixels (B, 3, 224, 224) to features (B, 1280).

    Raises ConfigError if the package is missing, and DataError if its file is not the published one.
    """
    import timm

    file = _weights_file()
    if file is None:
        raise ConfigError("the ImageNet encoder is not installed", where=IMAGENET, remedy=IMAGENET_INSTALL)
    if sha256_file(file) != WEIGHTS_SHA256:
        remedy = f"install {IMAGENET_PACKAGE}=={IMAGENET_VERSION} again"
        raise DataError("the weights of the ImageNet encoder are damaged", where=str(file), remedy=remedy)
    model = timm.create_model(ARCHITECTURE, pretrained=False)
    model.load_state_dict(_renamed(torch.load(file, map_location="cpu", weights_only=True), model))
    model.reset_classifier(0)
    return model.eval()


def _weights_file() -> Path | None:
    """Return the package's file of weights, without importing the package; None if it is not there."""
    try:
        files = metadata.distribution(IMAGENET_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(entry.locate())) for entry in files if entry.name == _FILE]
    return paths[0] if paths and paths[0].is_file() else None


def _renamed(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights under timm's names: both implementations list their tensors in the same order.

    Counters of batches, which nothing reads, are left out.
    """
    own = model.state_dict()
    names = [name for name in own if not name.endswith(_COUNTER)]
    tensors = [tensor for name, tensor in weights.items() if not name.endswith(_COUNTER)]
    shapes = [own[name].shape for name in names]
    if [tensor.shape for tensor in tensors] != shapes:
        raise ValueError(f"{len(tensors)} tensors do not fit the {len(names)} of {ARCHITECTURE}")
    return own | dict(zip(names, tensors, strict=True))
