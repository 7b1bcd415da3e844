"""CLIP scores of images: cosines of L2-normalized open_clip features, without scale, clamp or text prefix.

A score depends on the model, its weights, the resizing of the image, the data type and the length of the
text; `ClipScorer.describe` records all of it, to be stored beside every score. A text beyond the model's
context is scored by sentence (`long_text`); of a sentence that is too long itself open_clip reads the
beginning, and keeps the end token.
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
from lorakit.models import base_model, clip_weights
from lorakit.models.clip_weights import LOCAL
from lorakit.models.long_text import split_text

if TYPE_CHECKING:
    from PIL import Image

ImagesOrFeatures: TypeAlias = "Sequence[Image.Image] | torch.Tensor"
Resize = Literal["shortest", "squash", "pad"]

_RESIZE = {"shortest": "shortest", "squash": "squash", "pad": "longest"}  # open_clip's names
_PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
EMBEDDED = "embedded"  # name of the CLIP that ships with lorakit
DEFAULT_RESIZE: Resize = "pad"
BATCH = 32  # images or texts in one call of the model


class ClipScorer:
    """A CLIP with its preprocessing and tokenizer. Features are float32 on the CPU, (N, D), of length 1.

    `resize` is the way from other aspect ratios to the model's square: "pad" (the default) adds bars of the
    model's mean color, "shortest" crops the middle (it keeps 56 % of a 16:9 image), "squash" distorts. A
    square image is the same in all of them. `pretrained` is an open_clip tag or a .safetensors file. Raises
    ConfigError for a model or weights that do not exist or cannot be loaded.
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
            raise ConfigError(f"unknown resize {resize!r}", remedy=f"use one of {', '.join(_RESIZE)}")
        if dtype not in _PRECISION:
            raise ConfigError(f"CLIP cannot run in {dtype}", remedy="use float32, bfloat16 or float16")
        self.device, self.dtype, self.name = torch.device(device), dtype, model
        # a folder has its own weights
        self.pretrained = None if ":" in model or pretrained is None else str(pretrained)
        source = clip_weights.find_weights(model, self.pretrained)
        with _load_errors_as_config_error(model, self.pretrained):
            self.model = open_clip.create_model(
                model,
                source.weights,
                precision=_PRECISION[dtype],
                device=self.device,
                force_quick_gelu=source.quick_gelu,
                force_preprocess_cfg=source.preprocessing,
                require_pretrained=True,  # otherwise open_clip only warns, and uses random weights
            )
            self.tokenizer = open_clip.get_tokenizer(model)
        self.model.eval()
        self.preprocessing = _preprocessing(self.model, resize or DEFAULT_RESIZE)
        self.preprocess = open_clip.transform.image_transform_v2(self.preprocessing, is_train=False)
        self.revision, self.weights_sha256 = source.revision, source.sha256()
        self.parts: dict[str, list[str]] = {}
        """Every text that was scored, with the parts that it was scored by."""
        self._truncated_texts: dict[str, None] = {}  # an ordered set

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        resize: Resize | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ClipScorer:
        """Load a CLIP from a folder: open_clip_config.json, one .safetensors file, perhaps a tokenizer."""
        root = Path(folder)
        for pattern in ("open_clip_config.json", "*.safetensors"):
            if len(list(root.glob(pattern))) != 1:
                remedy = "use a folder saved by open_clip, with its weights in one safetensors file"
                raise ConfigError(
                    f"the CLIP folder must contain one {pattern}", where=str(root), remedy=remedy
                )
        return cls(f"{LOCAL}{root}", None, resize=resize, device=device, dtype=dtype)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit vectors (N, D) of images of any size."""
        batches = []
        for start in range(0, len(images), BATCH):
            batch = [self.preprocess(image.convert("RGB")) for image in images[start : start + BATCH]]
            pixels = torch.stack(batch).to(self.device, self.dtype)  # (B, 3, H, W)
            batches.append(self.model.encode_image(pixels).float().cpu())
        return F.normalize(torch.cat(batches), dim=-1) if batches else torch.empty(0, 0)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """Return vectors (N, D) of texts: of length 1, for a long text the mean of its sentences' vectors.

        The product with such a mean is the mean of the cosines. Distinct texts are encoded once.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.parts]
        too_long = self._truncated(new, self.tokenizer(new)) if new else []
        for text, is_cut in zip(new, too_long, strict=True):
            self.parts[text] = split_text(text, self.fits) if is_cut else [text]
        unique = list(dict.fromkeys(part for text in texts for part in self.parts[text]))
        batches = []
        for start in range(0, len(unique), BATCH):
            ids = self._tokens(unique[start : start + BATCH])  # (B, context)
            batches.append(self.model.encode_text(ids.to(self.device)).float().cpu())
        if not batches:
            return torch.empty(0, 0)
        features = F.normalize(torch.cat(batches), dim=-1)
        rows = {text: row for row, text in enumerate(unique)}
        means = [features[[rows[part] for part in self.parts[text]]].mean(0) for text in texts]
        return torch.stack(means)

    def fits(self, text: str) -> bool:
        """Return True if the model reads the whole text: more context would not change its ids."""
        return not self._truncated([text], self.tokenizer([text]))[0]

    def clip_t(self, images: ImagesOrFeatures, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine (N,) of each image, or of its `image_features`, with its own text."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images but {len(texts)} texts")
        products = self._features(images).double() * self.text_features(texts).double()
        return products.sum(-1).numpy()

    def nearest_text(self, images: ImagesOrFeatures, options: Sequence[Sequence[str]]) -> NDArray[np.int64]:
        """Return the index (N,) of the nearest of each image's own `options`; `image_features` serve too."""
        if len(images) != len(options) or not all(options):
            raise ValueError(
                f"{len(images)} images need as many lists of at least one option, got {len(options)}"
            )
        features = self._features(images).double()
        texts = self.text_features([text for texts in options for text in texts]).double()
        ends = np.cumsum([len(texts) for texts in options])
        parts = torch.tensor_split(texts, torch.from_numpy(ends[:-1]))
        best = [int((part @ row).argmax()) for row, part in zip(features, parts, strict=True)]
        return np.array(best, dtype=np.int64)

    def describe(self) -> dict[str, Any]:
        """Describe all that scores depend on, as JSON.

        Of the texts so far, `texts_by_sentence` lists those that were scored by sentence, `truncated_texts`
        the sentences of which only the beginning was read.
        """
        config = self.preprocessing
        size = config.size if isinstance(config.size, int) else list(config.size)
        return {
            "metric": "cosine of L2-normalized CLIP features; no scale, clamp or prefix",
            "model": Path(self.name).name if self.name.startswith(LOCAL) else self.name,
            "pretrained": "the model's own" if self.pretrained is None else Path(self.pretrained).name,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "resize": resize_mode_name(config.resize_mode),
            "input_size": size,
            "interpolation": config.interpolation,
            "dtype": str(self.dtype).removeprefix("torch."),
            "context_length": self.tokenizer.context_length,
            "texts_by_sentence": [text for text, parts in self.parts.items() if len(parts) > 1],
            "truncated_texts": list(self._truncated_texts),
            "open_clip": metadata.version("open-clip-torch"),
        }

    def _features(self, images: ImagesOrFeatures) -> torch.Tensor:
        return images if isinstance(images, torch.Tensor) else self.image_features(images)

    def _tokens(self, texts: list[str]) -> torch.Tensor:
        """Return token ids (N, context), and record truncated texts."""
        ids: torch.Tensor = self.tokenizer(texts)
        truncated = self._truncated(texts, ids)
        self._truncated_texts |= {text: None for text, is_cut in zip(texts, truncated, strict=True) if is_cut}
        return ids

    def _truncated(self, texts: list[str], ids: torch.Tensor) -> list[bool]:
        """Return True for each text whose ids (N, context) change with one more token of context."""
        longer = self.tokenizer(texts, context_length=self.tokenizer.context_length + 1)
        truncated: list[bool] = (longer[:, :-1] != ids).any(1).tolist()
        return truncated


def resize_mode_name(mode: str) -> str:
    """Return lorakit's name for open_clip's resize mode."""
    return {value: key for key, value in _RESIZE.items()}[mode]


def preprocess_config(
    size: int | Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    resize: Resize,
    interpolation: str = "bicubic",
) -> Any:
    """Build open_clip's PreprocessCfg for any image model; `size` is a side, or (height, width)."""
    from open_clip.transform import PreprocessCfg

    side = size if isinstance(size, int) else tuple(size)
    config = PreprocessCfg(size=side, mean=tuple(mean), std=tuple(std), interpolation=interpolation)
    return _with_resize(config, resize)


def _preprocessing(model: Any, resize: Resize) -> Any:
    """Return the model's PreprocessCfg with a resize; bars get the mean color, not black."""
    from open_clip.transform import PreprocessCfg

    return _with_resize(PreprocessCfg(**model.visual.preprocess_cfg), resize)


def _with_resize(config: Any, resize: Resize) -> Any:
    fill = round(255 * sum(config.mean) / len(config.mean)) if resize == "pad" else config.fill_color
    return replace(config, resize_mode=_RESIZE[resize], fill_color=fill)


@contextlib.contextmanager
def _load_errors_as_config_error(model: str, pretrained: str | None) -> Iterator[None]:
    """Turn all errors of loading a model into one ConfigError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        name = model if pretrained is None else f"{model} with weights {pretrained!r}"
        remedy = "check the model's files; a tag needs the network, or its download in the Hugging Face cache"
        raise ConfigError(f"cannot load CLIP {name}: {error}", remedy=remedy) from error


def load_clip_scorer(
    name: str, where: str, *, resize: Resize | None = None, device: str = "cpu"
) -> ClipScorer:
    """Load a CLIP by name: `embedded`, a folder, or open_clip's MODEL/PRETRAINED.

    `where` is the option or recipe key that errors name. Raises ConfigError for any other name.
    """
    spec = str(base_model.EMBEDDED_CLIP) if name == EMBEDDED else name
    if Path(spec).is_dir():
        return ClipScorer.from_folder(spec, resize=resize, device=device)
    model, slash, pretrained = spec.partition("/")
    if not slash:
        raise ConfigError(
            f"{spec!r} is neither a folder nor MODEL/PRETRAINED",
            where=where,
            remedy="use a name such as ViT-B-32/openai or ViT-H-14/FILE.safetensors",
        )
    return ClipScorer(model, pretrained, resize=resize, device=device)
