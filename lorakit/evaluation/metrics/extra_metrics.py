"""Further metrics by name: a second CLIP, CLIPScore, preference models, VQAScore, text in images.

`--metric NAME` or `--metric NAME=MODEL`; a model is a hub id, or a local folder or file. Each is a
`PromptScorer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean
from lorakit.data.prompts import Prompt
from lorakit.evaluation.feature_cache import PromptScorer
from lorakit.evaluation.metrics import feature_metrics
from lorakit.evaluation.metrics.image_encoders import as_config_error
from lorakit.evaluation.metrics.ocr import OcrScorer
from lorakit.evaluation.metrics.questions import QuestionScorer
from lorakit.evaluation.metrics.vqa import VQA_FILES, VqaScore
from lorakit.models import clip_score
from lorakit.models.clip_score import load_clip_scorer
from lorakit.models.judge_files import resolve_judge
from lorakit.models.long_text import split_text

PICKSCORE_REPO = "yuvalkirstain/PickScore_v1"


class SecondClip:
    """CLIP-T by a second model, because a base model that contains a CLIP should be scored by another one."""

    def __init__(self, clip: clip_score.ClipScorer, label: str) -> None:
        self.name, self.clip = f"clip_t@{label}", clip

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return the cosine of each image with its text (N,)."""
        return [float(v) for v in self.clip.clip_t(images, [prompt.score_text for prompt in prompts])]

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        return self.clip.describe()


class ClipScore:
    """CLIPScore of Hessel et al. (arXiv:2104.08718): 2.5 max(cosine, 0), texts with a prefix."""

    name = "clipscore"

    def __init__(self, clip: clip_score.ClipScorer) -> None:
        self.clip = clip

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return a score from 0 to 2.5 for each image (N,)."""
        texts = [feature_metrics.CLIPSCORE_PREFIX + prompt.score_text for prompt in prompts]
        return [float(value) for value in feature_metrics.clipscore(self.clip.clip_t(images, texts))]

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        metric = f"2.5 max(cosine, 0), texts prefixed {feature_metrics.CLIPSCORE_PREFIX!r}"
        return self.clip.describe() | {"metric": metric}


class HpsV2:
    """HPSv2 (Wu et al., arXiv:2306.09341): cosine of an OpenCLIP ViT-H/14 trained on human preferences."""

    name = "hpsv2"

    def __init__(self, clip: clip_score.ClipScorer) -> None:
        self.clip = clip

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return the cosine of each image with its text (N,)."""
        return [float(v) for v in self.clip.clip_t(images, [prompt.score_text for prompt in prompts])]

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        return self.clip.describe() | {"metric": "HPSv2: cosine by its ViT-H-14"}


class PickScore:
    """PickScore (Kirstain et al., arXiv:2305.01569): scaled cosine of a CLIP trained on preferences."""

    name = "pickscore"

    def __init__(self, model: str, device: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.files = resolve_judge(model, VQA_FILES, "--metric pickscore")
        folder = self.files.folder
        loaded = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model = loaded.eval().to(device)
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.device = device
        self.context = int(self.model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return exp(logit scale) x the cosine of each image with its text (N,), long ones by sentence."""
        parts = [split_text(prompt.score_text, self._fits) for prompt in prompts]
        padded = [pad_to_square(image.convert("RGB")) for image in images]
        inputs = self.processor(
            text=[part for texts in parts for part in texts],
            images=padded,
            padding=True,
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        ).to(self.device)
        outputs = self.model(**inputs)
        image_features = F.normalize(outputs.image_embeds, dim=-1)
        by_image = F.normalize(outputs.text_embeds, dim=-1).split([len(texts) for texts in parts])
        text_features = torch.stack([features.mean(0) for features in by_image])
        cosines = (image_features * text_features).sum(-1)
        return [float(value) for value in self.model.logit_scale.exp() * cosines]

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        own = {"metric": "PickScore: exp(logit scale) x cosine", "resize": "pad", "dtype": "float32"}
        return self.files.describe() | own

    def _fits(self, text: str) -> bool:
        return len(self.processor.tokenizer(text)["input_ids"]) <= self.context


def pad_to_square(image: Image.Image) -> Image.Image:
    """Return the image between bars of gray, for preprocessing that would crop what is not square."""
    side = max(image.size)
    return ImageOps.pad(image, (side, side), color=(122, 116, 104)) if min(image.size) < side else image


def _load_second_clip(model: str | None, device: str) -> PromptScorer:
    spec = model or "ViT-B-32/openai"
    label = Path(spec).name if Path(spec).is_dir() else spec
    return SecondClip(load_clip_scorer(spec, "--metric clip_t", device=device), label)


def _load_hpsv2(model: str | None, device: str) -> PromptScorer:
    if model is None:
        raise ConfigError(
            "HPSv2 needs its weights",
            where="--metric hpsv2",
            remedy="use --metric hpsv2=FILE.safetensors (an open_clip ViT-H-14) or an open_clip folder",
        )
    spec = model if Path(model).is_dir() else f"ViT-H-14/{model}"
    return HpsV2(load_clip_scorer(spec, "--metric hpsv2", device=device))


PROMPT_SCORERS: dict[str, Callable[[str | None, str], PromptScorer]] = {
    "clip_t": _load_second_clip,
    "clipscore": lambda model, device: ClipScore(
        load_clip_scorer(model or "ViT-B-32/openai", "--metric clipscore", device=device)
    ),
    "hpsv2": _load_hpsv2,
    "ocr_accuracy": lambda model, device: OcrScorer.load(model),
    "pickscore": lambda model, device: PickScore(model or PICKSCORE_REPO, device),
    "questions": lambda model, device: QuestionScorer.load(model, device),
    "vqascore": lambda model, device: VqaScore.load(model, device),
}
"""By name: a function of (model or None, device) that loads the metric."""


def load_prompt_scorer(text: str, device: str = "cpu") -> PromptScorer:
    """Load a metric by NAME or NAME=MODEL; ConfigError if it cannot be loaded."""
    name, _, model = text.partition("=")
    if name not in PROMPT_SCORERS:
        remedy = f"one of {', '.join(PROMPT_SCORERS)}, each optionally with =MODEL"
        meant = did_you_mean(name, PROMPT_SCORERS)
        raise ConfigError(f"there is no metric {name!r}{meant}", where=f"--metric {text}", remedy=remedy)
    with as_config_error("the model of the metric", f"--metric {text}"):
        return PROMPT_SCORERS[name](model or None, device)
