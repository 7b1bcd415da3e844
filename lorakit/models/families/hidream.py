"""HiDream-I1: a mixture-of-experts transformer conditioned on two CLIPs, a T5 and every layer of a Llama."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    import torch
    from PIL import Image


class HiDream(Family):
    """Cai et al. 2025, https://arxiv.org/abs/2505.22705."""

    name = "hidream"
    title = "HiDream-I1"
    pipelines = ("HiDreamImagePipeline",)
    rank16 = "21.0 M"
    licence = "MIT"
    targets = r".+\.attn1\.(to_q|to_k|to_v|to_out|to_q_t|to_k_t|to_v_t|to_out_t)"
    patch = 2
    own_shift = True

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        t5, _, llama, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipe.text_encoder.device, do_classifier_free_guidance=False
        )
        return {
            "prompt_embeds_t5": t5,  # (1, 128, D)
            "prompt_embeds_llama3": llama.transpose(0, 1),  # (1, layers, 128, D)
            "pooled_prompt_embeds": pooled,  # (1, P)
        }

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        _let_experts_learn(denoiser)
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy,
            timesteps=t,
            encoder_hidden_states_t5=cond["prompt_embeds_t5"],
            encoder_hidden_states_llama3=cond["prompt_embeds_llama3"].transpose(0, 1),
            pooled_embeds=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return -prediction

    def latent_shape(self, pipe: Any, width: int, height: int) -> tuple[int, ...]:
        # a square is as large as one likes, other shapes fill a sequence of fixed length
        shape, limits = super().latent_shape(pipe, width, height), self._config(pipe, "transformer")[1]
        if width != height and shape[1] * shape[2] > math.prod(limits["max_resolution"]):
            raise ConfigError(f"{width} x {height} pixels are too many for the base", remedy="use fewer")
        return shape

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        **settings: Any,
    ) -> list[Image.Image]:
        # The pipeline scales every size to the area of this one; a hair more, for it rounds down.
        side = (settings["width"] * settings["height"]) ** 0.5 / pipe.vae_scale_factor
        default, pipe.default_sample_size = pipe.default_sample_size, side * (1 + 1e-6)
        try:
            return super().sample(pipe, cond, negative, noise, **settings)
        finally:
            pipe.default_sample_size = default

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        return cond | {"prompt_embeds_llama3": cond["prompt_embeds_llama3"].transpose(0, 1)}


def _let_experts_learn(denoiser: Any) -> None:
    """In evaluation mode the experts run without gradients, and in training mode the picture's layout is
    another: so the experts train while the network around them evaluates."""
    denoiser.training = False
    for module in denoiser.modules():
        if hasattr(module, "moe_infer"):
            module.training, module._force_inference_output = True, False
