"""Settings of a family in a few groups, whose defaults are the common case.

A family states a group only where it differs: `components = ComponentSpec(denoiser="unet")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NO_SHIFT: Mapping[str, Any] = {"shift_factor": None}
"""VAE overrides of a pipeline that decodes without a shift, whatever its VAE's configuration says."""


@dataclass(frozen=True)
class ComponentSpec:
    """Components of the pipeline, by their names in `model_index.json`."""

    denoiser: str = "transformer"
    """The network that is trained."""
    experts: tuple[str, ...] = ()
    """Networks that are trained beside the denoiser, in models that have them."""
    optional: tuple[str, ...] = ()
    """Components that neither training nor sampling needs: loaded only when they are named."""
    always_loaded: tuple[str, ...] = ()
    """Small components without which the pipeline cannot be built, or samples differently."""
    sampling_only: tuple[str, ...] = ()
    """Networks that sampling needs besides the denoiser and the VAE."""
    image_encoders: tuple[str, ...] = ()
    """Components that encode conditioning images besides the VAE, in models that have them: for the cache,
    and again for sampling."""


@dataclass(frozen=True)
class TextSpec:
    """Text encoders and their output."""

    component_prefixes: tuple[str, ...] = ("text_", "tokenizer", "processor")
    """Prefixes of the names of all components that encoding text needs."""
    trainable_encoders: tuple[str, ...] = ()
    """CLIP text encoders that can be trained; all others stay frozen."""
    skipped_layers: Mapping[str, int] = field(default_factory=dict)
    """Number of last layers of a text encoder that the text embeddings do not depend on."""
    masks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Masks of the text, each with the embeddings whose padding it hides from the network: the length of the
    padding changes nothing, so it is cut off."""
    depends_on_size: bool = False
    """True if text embeddings belong to one image size, which `encode_text` then needs."""


@dataclass(frozen=True)
class CallSpec:
    """Arguments of the pipeline's call."""

    guidance_argument: str = "guidance_scale"
    """Name of the argument for the guidance scale; empty if the call has none."""
    guidance_off: float = 1.0
    """Guidance scale that switches guidance off; above it the pipeline uses a negative prompt, if it can."""
    extra_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every call, such as a prompt rewriter switched off."""


@dataclass(frozen=True)
class LatentSpec:
    """Latents, and the noise levels they are mixed with."""

    patch_size: int = 1
    """Latent positions per side of one token."""
    scheduler_shift: bool = True
    """True if the scheduler's configuration says how noise levels shift with resolution; False if the
    pipeline has a rule of its own."""
    vae_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the pipeline assumes of its VAE where the VAE's own configuration says otherwise."""


@dataclass(frozen=True)
class ConditioningSpec:
    """Conditioning images: `source` (edited or filled), `control`, and `mask` (255 where it is filled)."""

    accepted: tuple[str, ...] = ()
    """Kinds of conditioning images that the network takes besides the noisy latents."""
    required: tuple[str, ...] = ()
    """Those without which it cannot predict."""
    multiple_sources: bool = False
    """True if one sample may have several sources."""
    source_is_image: bool = False
    """True if the image itself, of a video its first frame, is the source where no other is named
    (inpainting, image to video)."""
    depends_on_frames: bool = False
    """True if encoded conditioning belongs to one number of frames."""
    read_by_text_encoder: bool = False
    """True if the text encoder sees the source: text embeddings then belong to a caption and its image."""
    one_prompt_per_call: bool = False
    """True if the pipeline would use one prompt's sources for a whole batch."""
    converts_pipelines: tuple[str, ...] = ()
    """Text-to-image pipelines that `load` converts for datasets with conditioning images."""
