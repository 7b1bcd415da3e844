"""CLIP scores of pictures: cosines of L2-normalised open_clip features, without scale, clamp or text prefix.

What a score means depends on the model, its weights, how the picture was resized, the number format and
whether the text fitted; `ClipScorer.describe` says all of it, to be written beside every number. open_clip
keeps the end token of a text that is cut, so long texts still score by what they begin with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError

from lorakit.core.errors import ConfigError
from lorakit.core.storage import sha256_file
from lorakit.models import base_model

if TYPE_CHECKING:
    from PIL import Image

ImagesOrFeatures: TypeAlias = "Sequence[Image.Image] | torch.Tensor"
Resize = Literal["shortest", "squash", "pad"]

_RESIZE = {"shortest": "shortest", "squash": "squash", "pad": "longest"}  # open_clip's names
_PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_LOCAL = "local-dir:"  # open_clip's mark of a folder
EMBEDDED = "embedded"  # name of the CLIP that ships with lorakit
BATCH = 32  # pictures or texts through the model at once


class ClipScorer:
    """A CLIP with its preprocessing and tokenizer. Features are float32 on the CPU, (N, D), of length 1.

    `resize` says how a picture that is not square reaches the model's square: "shortest" crops the middle (it
    keeps 56 % of a 16:9 picture), "squash" distorts, "pad" adds bars of the model's mean colour; None takes
    what the weights were trained with. `pretrained` is an open_clip tag or a .safetensors file.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str | Path | None = "openai",
        *,
        resize: Resize | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        import open_clip

        if resize is not None and resize not in _RESIZE:
            raise ConfigError(f"unknown resize {resize!r}", remedy=f"one of {', '.join(_RESIZE)}")
        if dtype not in _PRECISION:
            raise ConfigError(f"CLIP cannot run in {dtype}", remedy="float32, bfloat16 or float16")
        self.device, self.dtype, self.name = torch.device(device), dtype, model
        self.pretrained = (
            None if ":" in model or pretrained is None else str(pretrained)
        )  # a folder has its own
        if ":" not in model:
            _check_weights(model, self.pretrained)
        with _load_errors_as_config_error(model, self.pretrained):
            self.model = open_clip.create_model(
                model,
                self.pretrained,
                precision=_PRECISION[dtype],
                device=self.device,
                force_quick_gelu=_quick_gelu(model, self.pretrained),
                require_pretrained=True,  # else open_clip only warns and scores with random weights
            )
            self.tokenizer = open_clip.get_tokenizer(model)
        self.model.eval()
        self.preprocessing = _preprocessing(self.model, resize)
        self.preprocess = open_clip.transform.image_transform_v2(self.preprocessing, is_train=False)
        self.weights_sha256 = _weights_hash(model, self.pretrained)
        self._truncated: dict[str, None] = {}  # an ordered set

    @classmethod
    def local(
        cls,
        folder: str | Path,
        *,
        resize: Resize | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ClipScorer:
        """A CLIP from a folder: open_clip_config.json, one .safetensors file, a tokenizer if named."""
        root = Path(folder)
        for needed in ("open_clip_config.json", "*.safetensors"):
            if len(list(root.glob(needed))) != 1:
                remedy = "give a folder saved by open_clip, with its weights in one safetensors file"
                raise ConfigError(f"the CLIP folder must hold one {needed}", where=str(root), remedy=remedy)
        return cls(f"{_LOCAL}{root}", None, resize=resize, device=device, dtype=dtype)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors (N, D) of pictures of any size."""
        pieces = []
        for start in range(0, len(images), BATCH):
            batch = [self.preprocess(image.convert("RGB")) for image in images[start : start + BATCH]]
            pixels = torch.stack(batch).to(self.device, self.dtype)  # (B, 3, H, W)
            pieces.append(self.model.encode_image(pixels).float().cpu())
        return F.normalize(torch.cat(pieces), dim=-1) if pieces else torch.empty(0, 0)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (N, D) of texts; each different text is encoded once, and cut ones are remembered."""
        unique = list(dict.fromkeys(texts))
        pieces = []
        for start in range(0, len(unique), BATCH):
            ids = self._tokens(unique[start : start + BATCH])  # (B, context)
            pieces.append(self.model.encode_text(ids.to(self.device)).float().cpu())
        if not pieces:
            return torch.empty(0, 0)
        rows = {text: row for row, text in enumerate(unique)}
        return F.normalize(torch.cat(pieces), dim=-1)[[rows[text] for text in texts]]

    def clip_t(self, images: ImagesOrFeatures, texts: Sequence[str]) -> NDArray[np.float64]:
        """The cosine of each picture, or of its `image_features`, with its own text (N,), from -1 to 1."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures but {len(texts)} texts")
        products = self._features(images).double() * self.text_features(texts).double()
        return products.sum(-1).numpy()

    def choose(self, images: ImagesOrFeatures, options: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """For each picture, or its `image_features`, the index of the nearest of its own `options` (N,)."""
        if len(images) != len(options) or not all(options):
            raise ValueError(
                f"{len(images)} pictures need as many lists of at least one option, got {len(options)}"
            )
        pictures = self._features(images).double()
        texts = self.text_features([text for texts in options for text in texts]).double()
        ends = np.cumsum([len(texts) for texts in options])
        parts = torch.tensor_split(texts, torch.from_numpy(ends[:-1]))
        best = [int((part @ picture).argmax()) for picture, part in zip(pictures, parts, strict=True)]
        return np.array(best, dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """What the scores depend on, as JSON; `truncated` lists the texts so far that did not fit."""
        used = self.preprocessing
        size = used.size if isinstance(used.size, int) else list(used.size)
        return {
            "metric": "cosine of L2-normalised CLIP features; no scale, clamp or prefix",
            "model": Path(self.name).name if self.name.startswith(_LOCAL) else self.name,
            "pretrained": "the model's own" if self.pretrained is None else Path(self.pretrained).name,
            "weights_sha256": self.weights_sha256,
            "resize": resize_mode_name(used.resize_mode),
            "size": size,
            "interpolation": used.interpolation,
            "dtype": str(self.dtype).removeprefix("torch."),
            "context": self.tokenizer.context_length,
            "truncated": list(self._truncated),
            "open_clip": metadata.version("open-clip-torch"),
        }

    def _features(self, images: ImagesOrFeatures) -> torch.Tensor:
        return images if isinstance(images, torch.Tensor) else self.image_features(images)

    def _tokens(self, texts: list[str]) -> torch.Tensor:
        """Token ids (N, context). A text was cut if room for one more token would change its ids."""
        ids = self.tokenizer(texts)
        roomier = self.tokenizer(texts, context_length=self.tokenizer.context_length + 1)
        cut = (roomier[:, :-1] != ids).any(1).tolist()
        self._truncated |= {text: None for text, long in zip(texts, cut, strict=True) if long}
        return ids


def resize_mode_name(mode: str) -> str:
    """open_clip's resize mode by our name."""
    return {value: key for key, value in _RESIZE.items()}[mode]


def preprocess_config(
    size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    resize: Resize,
    interpolation: str = "bicubic",
) -> Any:
    """open_clip's PreprocessCfg for any image model; `size` is a side, or (height, width)."""
    from open_clip.transform import PreprocessCfg

    side = size if isinstance(size, int) else tuple(size)
    config = PreprocessCfg(size=side, mean=tuple(mean), std=tuple(std), interpolation=interpolation)
    return _resized(config, resize)


def _check_weights(model: str, pretrained: str | None) -> None:
    """Refuse weights that open_clip would not find or would unpickle, and name the tags that exist."""
    import open_clip

    if model not in open_clip.list_models():
        remedy = "see open_clip.list_models(), or ClipScorer.local for a folder"
        raise ConfigError(f"open_clip knows no model {model!r}", remedy=remedy)
    tags = open_clip.list_pretrained_tags_by_model(model)
    a_file = bool(pretrained) and str(pretrained).endswith(".safetensors") and Path(str(pretrained)).is_file()
    if pretrained in tags or a_file:
        return
    remedy = f"a .safetensors file, or one of: {', '.join(tags) or 'none for this model'}"
    raise ConfigError(f"no weights {pretrained!r} for {model}", remedy=remedy)


def _quick_gelu(model: str, pretrained: str | None) -> bool:
    """Whether the weights were trained with QuickGELU: open_clip builds "ViT-L-14" without and only warns."""
    import open_clip

    return bool(pretrained and open_clip.get_pretrained_cfg(model, pretrained).get("quick_gelu"))


def _weights_hash(model: str, pretrained: str | None) -> str | None:
    """SHA-256 of weights that lie in a file of the user's; a tag of open_clip names its weights by itself."""
    if model.startswith(_LOCAL):
        return sha256_file(next(Path(model.removeprefix(_LOCAL)).glob("*.safetensors")))
    return sha256_file(pretrained) if pretrained and pretrained.endswith(".safetensors") else None


def _preprocessing(model: Any, resize: Resize | None) -> Any:
    """The model's PreprocessCfg, with another resize where asked; bars get the mean colour, not black."""
    from open_clip.transform import PreprocessCfg

    used = PreprocessCfg(**model.visual.preprocess_cfg)
    return used if resize is None else _resized(used, resize)


def _resized(used: Any, resize: Resize) -> Any:
    fill = round(255 * sum(used.mean) / len(used.mean)) if resize == "pad" else used.fill_color
    return replace(used, resize_mode=_RESIZE[resize], fill_color=fill)


@contextlib.contextmanager
def _load_errors_as_config_error(model: str, pretrained: str | None) -> Iterator[None]:
    """Whatever keeps open_clip from loading a model is one readable error."""
    try:
        yield
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        what = model if pretrained is None else f"{model} with weights {pretrained!r}"
        remedy = (
            "check the model's files; a tag needs the network once, or its download in the Hugging Face cache"
        )
        raise ConfigError(f"cannot load CLIP {what}: {error}", remedy=remedy) from error


def load_clip_scorer(
    name: str, where: str, *, resize: Resize | None = None, device: str = "cpu"
) -> ClipScorer:
    """Load a CLIP by name: `embedded`, a folder, or open_clip's MODEL/PRETRAINED.

    `where` is the option or recipe key that errors name. Raises ConfigError for any other name.
    """
    spec = str(base_model.EMBEDDED_CLIP) if name == EMBEDDED else name
    if Path(spec).is_dir():
        return ClipScorer.local(spec, resize=resize, device=device)
    model, slash, pretrained = spec.partition("/")
    if not slash:
        raise ConfigError(
            f"{spec!r} is neither a folder nor MODEL/PRETRAINED",
            where=where,
            remedy="such as ViT-B-32/openai, or ViT-H-14/FILE.safetensors",
        )
    return ClipScorer(model, pretrained, resize=resize, device=device)
