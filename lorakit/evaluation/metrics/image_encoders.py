"""What looks at pictures besides CLIP: DINO and other backbones by name, for DINO-I, drift and copies.

An eye turns pictures into unit vectors and describes itself; `score.ClipScorer` is one too. All of them take
pictures through the same resize (open_clip's, with antialiasing: a tensor resize without shifts features by
4-30 %), with the mean, deviation and size of their own weights.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from lorakit.core.errors import ConfigError, first_line
from lorakit.core.storage import sha256_file
from lorakit.models import clip_score, hub

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_DINO = "timm:vit_base_patch14_dinov2.lvd142m"
DINOV2_SIDE = 224  # its own evaluation size; timm's configurations of it say 518
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SSCD_SIDE = 288
CHECK_REMEDY = "check the name and its files; a hub name needs the network once"
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError)


class ImageEncoder(Protocol):
    """Pictures to unit vectors (N, D), float32 on the CPU, and what they depend on, as JSON."""

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor: ...
    def describe(self) -> dict[str, Any]: ...


class Backbone:
    """An image model as an eye: `forward` maps pixels (B, 3, H, W) to features (B, D)."""

    def __init__(
        self,
        model: torch.nn.Module,
        forward: Callable[[torch.Tensor], torch.Tensor],
        preprocessing: Any,
        facts: dict[str, Any],
        device: str | torch.device = "cpu",
    ) -> None:
        from open_clip.transform import image_transform_v2

        self.model = model.eval().to(device)
        self.forward, self.preprocessing, self.facts = forward, preprocessing, facts
        self.device = torch.device(device)
        self.preprocess = image_transform_v2(preprocessing, is_train=False)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors (N, D) of pictures of any size."""
        pieces = []
        for start in range(0, len(images), clip_score.BATCH):
            batch = [
                self.preprocess(image.convert("RGB")) for image in images[start : start + clip_score.BATCH]
            ]
            pieces.append(self.forward(torch.stack(batch).to(self.device)).float().cpu())
        return F.normalize(torch.cat(pieces), dim=-1) if pieces else torch.empty(0, 0)

    def describe(self) -> dict[str, Any]:
        """What the features depend on."""
        used = self.preprocessing
        return {
            **self.facts,
            "resize": clip_score.resize_mode_name(used.resize_mode),
            "size": used.size if isinstance(used.size, int) else list(used.size),
            "interpolation": used.interpolation,
            "dtype": "float32",
        }


def load_image_encoder(
    spec: str, *, resize: clip_score.Resize | None = None, device: str | torch.device = "cpu"
) -> Backbone:
    """A backbone by `timm:NAME`, `transformers:HUB-ID`, `sscd:FILE`, or a local folder of either library.

    Whatever keeps it from loading is one ConfigError. Hub names are fetched once into the hub's own cache;
    only safetensors are read, and no code of a model's is run.
    """
    library, colon, name = spec.partition(":")
    makers = {"timm": _timm, "transformers": _transformers, "sscd": _sscd}
    if Path(spec).is_dir():
        library, name = _detect_library(Path(spec)), spec
    elif not colon or library not in makers:
        remedy = f"such as {DEFAULT_DINO}, transformers:facebook/dinov2-base, or a local folder"
        raise ConfigError(f"{spec!r} names no image model", where="--dino", remedy=remedy)
    with as_config_error("the image model", spec, "`--dino none` uses CLIP instead"):
        return makers[library](name, resize, device)


def _detect_library(folder: Path) -> str:
    """timm's config.json names an `architecture`, that of transformers a `model_type`."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError("the image model has no config.json", where=str(folder))
    return "timm" if "architecture" in json.loads(file.read_text(encoding="utf-8")) else "transformers"


@contextlib.contextmanager
def as_config_error(what: str, where: str, remedy: str = "") -> Iterator[None]:
    """Whatever keeps a library from loading a model is one ConfigError."""
    try:
        yield
    except _LOAD_ERRORS as error:
        reason = f"cannot load {what}: {first_line(error)}"
        raise ConfigError(
            reason, where=where, remedy=f"{CHECK_REMEDY}; {remedy}" if remedy else CHECK_REMEDY
        ) from error


def _timm(name: str, resize: clip_score.Resize | None, device: str | torch.device) -> Backbone:
    import timm

    folder = Path(name) if Path(name).is_dir() else None
    # Some models have a fixed size and no `img_size`; DINOv2's is larger than it was evaluated at.
    options = {"img_size": DINOV2_SIDE} if "dinov2" in name and folder is None else {}
    model = timm.create_model(
        f"local-dir:{folder}" if folder else name, pretrained=True, num_classes=0, **options
    )
    config = timm.data.resolve_model_data_config(model)
    preprocessing = clip_score.preprocess_config(
        options.get("img_size") or config["input_size"][1:],
        config["mean"],
        config["std"],
        resize or "shortest",
        config["interpolation"],
    )
    facts = _encoder_description("timm", name, folder, "pooled output")
    return Backbone(model, model, preprocessing, facts, device)


def _transformers(name: str, resize: clip_score.Resize | None, device: str | torch.device) -> Backbone:
    from transformers import AutoImageProcessor, AutoModel

    root = (
        Path(name) if Path(name).is_dir() else hub.download_model(name, ("*.json", "*.safetensors"), "--dino")
    )
    model = AutoModel.from_pretrained(root, local_files_only=True, use_safetensors=True)
    processor = AutoImageProcessor.from_pretrained(root, local_files_only=True)
    size = getattr(processor, "crop_size", None) or processor.size
    side = size.get("height") or size.get("shortest_edge")
    preprocessing = clip_score.preprocess_config(
        int(side), processor.image_mean, processor.image_std, resize or "shortest", "bicubic"
    )

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = model(pixel_values=pixels).last_hidden_state[:, 0]  # the class token
        return first

    folder = Path(name) if Path(name).is_dir() else None
    return Backbone(
        model,
        forward,
        preprocessing,
        _encoder_description("transformers", name, folder, "class token"),
        device,
    )


def _sscd(name: str, resize: clip_score.Resize | None, device: str | torch.device) -> Backbone:
    """The copy detector of Pizzi et al. (arXiv:2202.10261), which is published as a TorchScript file."""
    if not Path(name).is_file():
        raise ConfigError(
            "there is no such file", where=f"sscd:{name}", remedy="give SSCD's TorchScript file"
        )
    model = torch.jit.load(name, map_location="cpu")
    preprocessing = clip_score.preprocess_config(
        SSCD_SIDE, IMAGENET_MEAN, IMAGENET_STD, resize or "squash", "bilinear"
    )
    facts = _encoder_description("sscd", Path(name).name, None, "descriptor") | {
        "weights_sha256": sha256_file(name)
    }
    return Backbone(model, model, preprocessing, facts, device)


def _encoder_description(library: str, name: str, folder: Path | None, output: str) -> dict[str, Any]:
    """What `describe` says of the weights; of a local folder only its last name, for results travel."""
    weights = sorted(folder.glob("*.safetensors")) if folder else []
    return {
        "metric": f"cosine of L2-normalised features: {output}",
        "model": f"{library}:{folder.name if folder else name}",
        "weights_sha256": sha256_file(weights[0]) if weights else None,
        "torch": metadata.version("torch"),
    }
