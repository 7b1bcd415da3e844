"""Further scores by name: a second CLIP, CLIPScore, preference models, VQAScore, text in pictures.

`--also NAME` or `--also NAME=MODEL`; a model is a hub id or a local folder or file. Each is an `Extra`: it
scores pictures against prompts, and says what its numbers depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.feature_cache import PromptScorer
from lorakit.evaluation.metrics import feature_metrics
from lorakit.evaluation.metrics.image_encoders import as_config_error
from lorakit.evaluation.metrics.ocr import OcrScorer
from lorakit.evaluation.metrics.vqa import VQA_FILES, VqaScore
from lorakit.models import clip_score, hub
from lorakit.models.clip_score import load_clip_scorer

if TYPE_CHECKING:
    from PIL import Image

PICKSCORE_REPO = "yuvalkirstain/PickScore_v1"


class SecondClip:
    """CLIP-T by another model, beside the first: a base that embeds one CLIP should be judged by two."""

    def __init__(self, clip: clip_score.ClipScorer, label: str) -> None:
        self.name, self.clip = f"clip_t@{label}", clip

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """The cosine of each picture with its text."""
        return [float(v) for v in self.clip.clip_t(images, [prompt.score_text for prompt in prompts])]

    def describe(self) -> dict[str, Any]:
        return self.clip.describe()


class ClipScore:
    """CLIPScore of Hessel et al. (arXiv:2104.08718): 2.5 max(cosine, 0), texts with a prefix."""

    name = "clipscore"

    def __init__(self, clip: clip_score.ClipScorer) -> None:
        self.clip = clip

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """One number from 0 to 2.5 a picture."""
        texts = [feature_metrics.CLIPSCORE_PREFIX + prompt.score_text for prompt in prompts]
        return [float(value) for value in feature_metrics.clipscore(self.clip.clip_t(images, texts))]

    def describe(self) -> dict[str, Any]:
        metric = f"2.5 max(cosine, 0), texts prefixed {feature_metrics.CLIPSCORE_PREFIX!r}"
        return self.clip.describe() | {"metric": metric}


class HpsV2:
    """HPSv2 (Wu et al., arXiv:2306.09341): the cosine of an OpenCLIP ViT-H/14 trained on people's choices."""

    name = "hpsv2"

    def __init__(self, clip: clip_score.ClipScorer) -> None:
        self.clip = clip

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """The cosine of each picture with its text."""
        return [float(v) for v in self.clip.clip_t(images, [prompt.score_text for prompt in prompts])]

    def describe(self) -> dict[str, Any]:
        return self.clip.describe() | {"metric": "HPSv2: cosine by its ViT-H-14"}


class PickScore:
    """PickScore (Kirstain et al., arXiv:2305.01569): the scaled cosine of a CLIP trained on choices."""

    name = "pickscore"

    def __init__(self, model: str, device: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        root = (
            Path(model) if Path(model).is_dir() else hub.download_model(model, VQA_FILES, "--also pickscore")
        )
        loaded = CLIPModel.from_pretrained(root, local_files_only=True, use_safetensors=True)
        self.model = loaded.eval().to(device)
        self.processor = AutoProcessor.from_pretrained(root, local_files_only=True)
        self.device, self.label = device, root.name if Path(model).is_dir() else model

    @torch.inference_mode()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """exp(logit scale) x cosine of each picture with its text."""
        texts = [prompt.score_text for prompt in prompts]
        rgb = [image.convert("RGB") for image in images]
        room = self.model.config.text_config.max_position_embeddings
        given = self.processor(
            text=texts, images=rgb, padding=True, truncation=True, max_length=room, return_tensors="pt"
        ).to(self.device)
        answer = self.model(**given)
        pictures = F.normalize(answer.image_embeds, dim=-1)
        cosines = (pictures * F.normalize(answer.text_embeds, dim=-1)).sum(-1)
        return [float(value) for value in self.model.logit_scale.exp() * cosines]

    def describe(self) -> dict[str, Any]:
        return {"metric": "PickScore: exp(logit scale) x cosine", "model": self.label, "dtype": "float32"}


def _load_second_clip(model: str | None, device: str) -> PromptScorer:
    spec = model or "ViT-B-32/openai"
    label = Path(spec).name if Path(spec).is_dir() else spec
    return SecondClip(load_clip_scorer(spec, "--also clip", device=device), label)


def _load_hpsv2(model: str | None, device: str) -> PromptScorer:
    if model is None:
        raise ConfigError(
            "HPSv2 needs its weights",
            where="--also hpsv2",
            remedy="--also hpsv2=FILE.safetensors (a ViT-H-14 of open_clip), or a folder of open_clip's",
        )
    spec = model if Path(model).is_dir() else f"ViT-H-14/{model}"
    return HpsV2(load_clip_scorer(spec, "--also hpsv2", device=device))


PROMPT_SCORERS: dict[str, Callable[[str | None, str], PromptScorer]] = {
    "clip": _load_second_clip,
    "clipscore": lambda model, device: ClipScore(
        load_clip_scorer(model or "ViT-B-32/openai", "--also clipscore", device=device)
    ),
    "hpsv2": _load_hpsv2,
    "ocr": lambda model, device: OcrScorer(model),
    "pickscore": lambda model, device: PickScore(model or PICKSCORE_REPO, device),
    "vqascore": lambda model, device: VqaScore.open(model, device),
}
"""(model or None, device) -> the score."""


def load_prompt_scorer(text: str, device: str = "cpu") -> PromptScorer:
    """An extra by NAME or NAME=MODEL; whatever keeps it from loading is one ConfigError."""
    name, _, model = text.partition("=")
    if name not in PROMPT_SCORERS:
        remedy = f"one of {', '.join(PROMPT_SCORERS)}, each perhaps with =MODEL"
        raise ConfigError(f"there is no score {name!r}", where=f"--also {text}", remedy=remedy)
    with as_config_error("the score's model", f"--also {text}"):
        return PROMPT_SCORERS[name](model or None, device)
