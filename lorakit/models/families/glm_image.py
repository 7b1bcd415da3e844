"""GLM-Image: a language model generates coarse image tokens, which condition the transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.models.families import prompt_override
from lorakit.models.families.family import Conditioning, ConditioningTensors
from lorakit.models.families.packing import small_vector, unshift_timestep
from lorakit.models.families.specs import NO_SHIFT, LatentSpec, TextSpec
from lorakit.models.families.unpadded import TEXT_MASK, UnpaddedTextFamily

if TYPE_CHECKING:
    import torch
    from PIL import Image

PIXELS = 8  # per side of one latent, in the published VAE


class GlmImage(UnpaddedTextFamily):
    """Z.ai 2026, https://huggingface.co/zai-org/GLM-Image. Text embeddings are those of quoted words."""

    name = "glm-image"
    title = "GLM-Image"
    pipelines = ("GlmImagePipeline",)
    rank16_parameters = "9.8 M"
    license = "MIT"
    text = TextSpec(
        component_prefixes=("text_", "tokenizer", "processor", "vision_language_encoder"),
        depends_on_size=True,
    )
    # a coarse token covers four latents per side; the pipeline applies only mean and deviation
    latents = LatentSpec(
        patch_size=4, scheduler_shift=False, vae_overrides={"scaling_factor": 1.0, **NO_SHIFT}
    )

    def encode_text(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        images: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        if captions and size is None:
            raise ConfigError("GLM-Image encodes text for one image size, and no size was given")
        conds = super().encode_text(pipe, captions)
        return [
            cond | {"prior_token_ids": _prior_tokens(pipe, caption, *(size or (0, 0)))}
            for caption, cond in zip(captions, conds, strict=True)
        ]

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(captions, False, device=pipe.text_encoder.device)
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, prior = cond["prompt_embeds"], cond["prior_token_ids"]
        sides = [PIXELS * side for side in noisy_latents.shape[2:]]
        size = small_vector(sides, text).expand(len(noisy_latents), -1)
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy_latents,
            encoder_hidden_states=text,
            prior_token_id=prior,
            prior_token_drop=torch.zeros_like(prior, dtype=torch.bool),
            timestep=unshift_timestep(timesteps, noisy_latents.shape[2] * noisy_latents.shape[3] // 4) - 1,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            return_dict=False,
        )[0]
        return prediction

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Override `encode_prompt`: the call refuses embeddings of different lengths, but not such texts."""
        texts = cond["prompt_embeds"], None if negative_cond is None else negative_cond["prompt_embeds"]
        with prompt_override.override_encode_prompt(pipe, lambda *_, **__: texts):
            return super()._call_pipeline(pipe, cond, None, settings)


def _prior_tokens(pipe: Any, caption: str, width: int, height: int) -> torch.Tensor:
    """Generate the coarse image tokens (N,) for a caption: the same at every call."""
    import torch

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        tokens, _, _ = pipe.generate_prior_tokens([caption], height, width, device=pipe.text_encoder.device)
    prior: torch.Tensor = tokens[0]
    return prior
