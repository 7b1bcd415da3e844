"""Inputs of the scoring: the loaded judges, the reference images, and the images of each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.evaluation.feature_cache import FrameSource, PromptScorer
from lorakit.evaluation.metrics.face_identity import FaceEncoder
from lorakit.evaluation.metrics.image_encoders import ImageEncoder
from lorakit.evaluation.metrics.subject_mask import MaskModel
from lorakit.evaluation.sample_files import SampleFile
from lorakit.evaluation.variant_origin import VariantOrigin
from lorakit.models import clip_score


@dataclass(frozen=True)
class JudgeModels:
    """The models that score; without an `image_encoder`, CLIP's image tower is used for it."""

    clip: clip_score.ClipScorer
    image_encoder: ImageEncoder | None = None
    copy_detector: ImageEncoder | None = None
    """SSCD."""
    prompt_scorers: Sequence[PromptScorer] = ()
    mask_model: MaskModel | None = None
    """Cuts out the subject, so that fidelity does not count backgrounds."""
    face_encoder: FaceEncoder | None = None
    notes: Sequence[str] = ()
    """Sentences about models that replace others."""
    win_rates: Sequence[str] = ()
    """Metrics to count wins of against the base model, beside the preference models."""

    def describe(self) -> dict[str, Any]:
        """Return the settings that every score depends on, by the model or metric."""
        settings: dict[str, Any] = {"clip_model": self.clip.describe()}
        if self.image_encoder:
            settings["image_encoder"] = self.image_encoder.describe()
        if self.copy_detector:
            settings["copy_detector"] = self.copy_detector.describe()
        if self.mask_model:
            settings["mask_model"] = self.mask_model.describe()
        if self.face_encoder:
            settings["face_model"] = self.face_encoder.describe()
        return settings | {scorer.name: scorer.describe() for scorer in self.prompt_scorers}


@dataclass(frozen=True)
class ReferenceImages:
    """Images of the subjects, and for each of them True if the adapter was trained on it."""

    names: list[str]
    sources: list[FrameSource]
    trained_on: list[bool]
    folder: str | None = None
    """Their folder, relative to the evaluation's folder."""
    triggers: list[str | None] = field(default_factory=list)
    """The trigger word of the subject that each shows; without them all show one subject."""
    cut_outs: dict[int, FrameSource] = field(default_factory=dict)
    """By index: the subject alone, of images with a mask in the dataset."""
    class_nouns: dict[str | None, str | None] = field(default_factory=dict)
    """By trigger: the name of the subject."""


@dataclass
class VariantSamples:
    """The images of one variant before they are scored."""

    name: str
    samples: list[SampleFile]
    step: int | None = None
    strength: float | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)
    origin: VariantOrigin | None = None
    stopped_early: bool = False
    """True if it has images for the first prompts of a race only."""
