"""Recipe sections `samples` and `validate`: measurements during training, which change no weight."""

from __future__ import annotations

from lorakit.config.fields import (
    Fraction,
    NonNegativeFloat,
    PositiveInt,
    RecipeSection,
    StrippedPath,
    StrippedStr,
)


class SamplingConfig(RecipeSection):
    """Samples during training, from fixed prompts with fixed noise."""

    prompts: StrippedPath | None = None
    """Prompt file (JSONL, YAML, TSV or text); null generates no samples."""
    every: PositiveInt = 250
    """Training steps between samples."""
    num_inference_steps: PositiveInt = 20
    """Denoising steps of each sample."""
    guidance_scale: NonNegativeFloat | None = None
    """Classifier-free guidance scale; null means the default of the pipeline."""
    clip_model: StrippedStr | None = None
    """CLIP model that scores the samples during training: `embedded`, a folder written by open_clip, or
    NAME/PRETRAINED such as ViT-L-14/openai; null does not score."""


class ValidationConfig(RecipeSection):
    """Validation loss: the loss on images that are held out from training."""

    fraction: Fraction = 0.0
    """Fraction of the images that are held out."""
    every: PositiveInt = 250
    """Training steps between measurements."""
