"""HiDream-I1: a mixture-of-experts transformer conditioned on two CLIPs, a T5 and every layer of a Llama."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.specs import LatentSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image


class HiDream(Family):
    """Cai et al. 2025, https://arxiv.org/abs/2505.22705."""

    name = "hidream"
    title = "HiDream-I1"
    pipelines = ("HiDreamImagePipeline",)
    rank16_parameters = "21.0 M"
    license = "MIT"
    target_modules = r".+\.attn1\.(to_q|to_k|to_v|to_out|to_q_t|to_k_t|to_v_t|to_out_t)"
    latents = LatentSpec(patch_size=2, scheduler_shift=False)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        t5, _, llama, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return {
            "prompt_embeds_t5": t5,  # (1, 128, D)
            "prompt_embeds_llama3": llama.transpose(0, 1),  # (1, layers, 128, D)
            "pooled_prompt_embeds": pooled,  # (1, P)
        }

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        _train_experts_only(denoiser)
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy_latents,
            timesteps=timesteps,
            encoder_hidden_states_t5=cond["prompt_embeds_t5"],
            encoder_hidden_states_llama3=cond["prompt_embeds_llama3"].transpose(0, 1),
            pooled_embeds=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return -prediction

    def latent_shape(self, pipe: Any, width: int, height: int) -> tuple[int, ...]:
        # squares have no limit, other aspect ratios fill a sequence of fixed length
        shape, limits = (
            super().latent_shape(pipe, width, height),
            self._component_config(pipe, "transformer").config,
        )
        if width != height and shape[1] * shape[2] > math.prod(limits["max_resolution"]):
            raise ConfigError(
                f"{width} x {height} pixels are too many for the base model", remedy="use a smaller size"
            )
        return shape

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **settings: Any,
    ) -> list[Image.Image]:
        # the pipeline scales every size to the area of this one; slightly more, because it rounds down
        side = (settings["width"] * settings["height"]) ** 0.5 / pipe.vae_scale_factor
        default, pipe.default_sample_size = pipe.default_sample_size, side * (1 + 1e-6)
        try:
            return super().sample(pipe, cond, negative_cond, noise, **settings)
        finally:
            pipe.default_sample_size = default

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        return cond | {"prompt_embeds_llama3": cond["prompt_embeds_llama3"].transpose(0, 1)}


def _train_experts_only(denoiser: Any) -> None:
    """Put only the experts in training mode: in evaluation mode they compute no gradients, and a network in
    training mode expects another layout of the image."""
    denoiser.training = False
    for module in denoiser.modules():
        if hasattr(module, "moe_infer"):
            module.training, module._force_inference_output = True, False
