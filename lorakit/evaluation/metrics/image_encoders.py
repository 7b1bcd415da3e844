"""Image encoders besides CLIP, by name: DINO and other backbones, for DINO-I, drift and copies.

An image encoder turns images into unit vectors and describes itself; `clip_score.ClipScorer` is one too. All
of them use the same resize (open_clip's, with antialiasing: a tensor resize without it shifts features by
4-30 %), with the mean, deviation and size that belong to their weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from lorakit.core.checksums import sha256_file
from lorakit.core.errors import ConfigError, first_line
from lorakit.core.storage import read_json
from lorakit.evaluation.metrics import imagenet_encoder
from lorakit.models import clip_score
from lorakit.models.hub import UnreachableError
from lorakit.models.judge_files import require_weights, resolve_judge
from lorakit.models.offline_judges import IMAGENET_INSTALL

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_IMAGE_ENCODER = "timm:vit_base_patch14_dinov2.lvd142m"
DINOV2_SIDE = 224  # size of its published evaluation; timm's configurations have 518
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SSCD_SIDE = 288
CHECK_REMEDY = "check the name and its files; a hub name needs the network the first time"
OFFLINE_NOTE = (
    "DINOv2 could not be loaded, because the hub cannot be reached: fidelity, copies, diversity and drift "
    "are measured with the ImageNet encoder instead, and cannot be compared with an evaluation by DINOv2."
)
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError)


class ImageEncoder(Protocol):
    """Encodes images as unit vectors."""

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit vectors (N, D), float32 on the CPU."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the settings that the features depend on, as JSON."""
        ...


class Backbone:
    """An image model as an encoder: `forward` maps pixels (B, 3, H, W) to features (B, D)."""

    def __init__(
        self,
        model: torch.nn.Module,
        forward: Callable[[torch.Tensor], torch.Tensor],
        preprocessing: Any,
        description: dict[str, Any],
        device: str | torch.device = "cpu",
    ) -> None:
        from open_clip.transform import image_transform_v2

        self.model = model.eval().to(device)
        self.forward, self.preprocessing, self.description = forward, preprocessing, description
        self.device = torch.device(device)
        self.preprocess = image_transform_v2(preprocessing, is_train=False)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit vectors (N, D) of images of any size."""
        batches = []
        for start in range(0, len(images), clip_score.BATCH):
            batch = [
                self.preprocess(image.convert("RGB")) for image in images[start : start + clip_score.BATCH]
            ]
            batches.append(self.forward(torch.stack(batch).to(self.device)).float().cpu())
        return F.normalize(torch.cat(batches), dim=-1) if batches else torch.empty(0, 0)

    def describe(self) -> dict[str, Any]:
        """Return the settings that the features depend on, as JSON."""
        used = self.preprocessing
        return {
            **self.description,
            "resize": clip_score.resize_mode_name(used.resize_mode),
            "input_size": used.size if isinstance(used.size, int) else list(used.size),
            "interpolation": used.interpolation,
            "dtype": "float32",
        }


def load_image_encoder(
    spec: str, *, resize: clip_score.Resize | None = None, device: str | torch.device = "cpu"
) -> Backbone:
    """Load an encoder: `imagenet`, `timm:NAME`, `transformers:HUB-ID`, `sscd:FILE`, or a local folder.

    Hub files are downloaded once into the hub's own cache; only safetensors are read, and no code of the
    model is run. Without `resize`, images that are not square are padded. Raises ConfigError if it cannot be
    loaded.
    """
    library, colon, name = spec.partition(":")
    loaders = {"timm": _timm, "transformers": _transformers, "sscd": _sscd}
    if spec == imagenet_encoder.IMAGENET:
        return _imagenet(resize, device)
    if Path(spec).is_dir():
        library, name = _detect_library(Path(spec)), spec
    elif not colon or library not in loaders:
        remedy = f"such as {DEFAULT_IMAGE_ENCODER}, transformers:facebook/dinov2-base, imagenet, or a folder"
        raise ConfigError(f"{spec!r} is not an image encoder", where="--image-encoder", remedy=remedy)
    with as_config_error("the image encoder", spec, "`--image-encoder none` uses CLIP instead"):
        return loaders[library](name, resize, device)


def load_default_encoder(
    *, resize: clip_score.Resize | None = None, device: str | torch.device = "cpu"
) -> tuple[Backbone, list[str]]:
    """Load DINOv2; without network and local copy the ImageNet encoder, if it is installed, and say so.

    Returns the encoder and notes for the evaluation. Raises `UnreachableError` if neither is there.
    """
    try:
        return load_image_encoder(DEFAULT_IMAGE_ENCODER, resize=resize, device=device), []
    except UnreachableError as error:
        if not imagenet_encoder.is_installed():
            offline = f"{IMAGENET_INSTALL} (an image encoder that needs no network)"
            remedy = f"{error.remedy}; or {offline}; `--image-encoder none` uses CLIP instead"
            raise UnreachableError(error.message, where=error.where, remedy=remedy) from error
        encoder = load_image_encoder(imagenet_encoder.IMAGENET, resize=resize, device=device)
    return encoder, [OFFLINE_NOTE]


def _detect_library(folder: Path) -> str:
    """Return the library: timm's config.json has an `architecture`, that of transformers a `model_type`."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError("the image encoder has no config.json", where=str(folder))
    return "timm" if "architecture" in read_json(file, allow_infinity=True) else "transformers"


@contextlib.contextmanager
def as_config_error(model: str, where: str, remedy: str = "") -> Iterator[None]:
    """Raise any error of a library that loads `model` as a ConfigError."""
    try:
        yield
    except _LOAD_ERRORS as error:
        reason = f"cannot load {model}: {first_line(error)}"
        raise ConfigError(
            reason, where=where, remedy=f"{CHECK_REMEDY}; {remedy}" if remedy else CHECK_REMEDY
        ) from error


def _imagenet(resize: clip_score.Resize | None, device: str | torch.device) -> Backbone:
    model = imagenet_encoder.load_model()
    preprocessing = clip_score.preprocess_config(
        imagenet_encoder.SIDE,
        imagenet_encoder.MEAN,
        imagenet_encoder.STD,
        resize or clip_score.DEFAULT_RESIZE,
    )
    description = {
        **_description("pooled output"),
        "model": imagenet_encoder.IMAGENET,
        "architecture": imagenet_encoder.ARCHITECTURE,
        "weights_sha256": imagenet_encoder.WEIGHTS_SHA256,
    }
    return Backbone(model, model, preprocessing, description, device)


def _timm(name: str, resize: clip_score.Resize | None, device: str | torch.device) -> Backbone:
    import timm

    is_folder = Path(name).is_dir()
    config = None if is_folder else timm.get_pretrained_cfg(name)
    spec = name if is_folder else config.hf_hub_id if config else None
    if spec is None:
        raise ValueError(f"timm has no pretrained model {name!r} on the hub")
    files = resolve_judge(spec, ("model.safetensors",), "--image-encoder")
    # Some models have a fixed size and no `img_size`; DINOv2's default is larger than in its evaluation.
    options: dict[str, Any] = {"img_size": DINOV2_SIDE} if "dinov2" in name and not is_folder else {}
    if not is_folder:
        options["pretrained_cfg_overlay"] = {"file": str(require_weights(files, "--image-encoder"))}
    model = timm.create_model(
        f"local-dir:{name}" if is_folder else name, pretrained=True, num_classes=0, **options
    )
    used = timm.data.resolve_model_data_config(model)
    preprocessing = clip_score.preprocess_config(
        options.get("img_size") or used["input_size"][1:],
        used["mean"],
        used["std"],
        resize or clip_score.DEFAULT_RESIZE,
        used["interpolation"],
    )
    label = files.name if is_folder else name
    description = _description("pooled output") | files.describe() | {"model": f"timm:{label}"}
    return Backbone(model, model, preprocessing, description, device)


def _transformers(name: str, resize: clip_score.Resize | None, device: str | torch.device) -> Backbone:
    from transformers import AutoImageProcessor, AutoModel

    files = resolve_judge(name, ("*.json", "*.safetensors"), "--image-encoder")
    model = AutoModel.from_pretrained(files.folder, local_files_only=True, use_safetensors=True)
    processor = AutoImageProcessor.from_pretrained(files.folder, local_files_only=True)
    size = getattr(processor, "crop_size", None) or processor.size
    side = size.get("height") or size.get("shortest_edge")
    preprocessing = clip_score.preprocess_config(
        int(side),
        processor.image_mean,
        processor.image_std,
        resize or clip_score.DEFAULT_RESIZE,
        "bicubic",
    )

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        first: torch.Tensor = model(pixel_values=pixels).last_hidden_state[:, 0]  # the class token
        return first

    description = _description("class token") | files.describe() | {"model": f"transformers:{files.name}"}
    return Backbone(model, forward, preprocessing, description, device)


def _sscd(name: str, resize: clip_score.Resize | None, device: str | torch.device) -> Backbone:
    """Load the copy detector of Pizzi et al. (arXiv:2202.10261), published as a TorchScript file."""
    if not Path(name).is_file():
        raise ConfigError("there is no such file", where=f"sscd:{name}", remedy="use SSCD's TorchScript file")
    model = torch.jit.load(name, map_location="cpu")
    preprocessing = clip_score.preprocess_config(
        SSCD_SIDE, IMAGENET_MEAN, IMAGENET_STD, resize or "squash", "bilinear"
    )
    description = _description("descriptor") | {
        "model": f"sscd:{Path(name).name}",
        "weights_sha256": sha256_file(name),
    }
    return Backbone(model, model, preprocessing, description, device)


def _description(output: str) -> dict[str, Any]:
    return {
        "metric": f"cosine of L2-normalised features: {output}",
        "torch": metadata.version("torch"),
    }
