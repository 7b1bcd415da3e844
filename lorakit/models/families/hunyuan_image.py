"""HunyuanImage 2.1: a joint transformer, with a second encoder for the text that a caption quotes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorakit.models.families import hunyuan
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pad_text
from lorakit.models.families.specs import CallSpec, ComponentSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image


class HunyuanImage(Family):
    """Tencent 2025, https://github.com/Tencent-Hunyuan/HunyuanImage-2.1."""

    name = "hunyuan-image"
    title = "HunyuanImage 2.1"
    pipelines = ("HunyuanImagePipeline",)
    rank16_parameters = "33.0 M"
    license = "Tencent Hunyuan community"
    components = ComponentSpec(always_loaded=("guider", "ocr_guider"))
    # unused by this model, whose guidance scale is a setting of its guiders
    call = CallSpec(guidance_argument="distilled_guidance_scale")

    def _configure_pipeline(self, pipe: Any) -> None:
        super()._configure_pipeline(pipe)
        hunyuan.refuse_distilled(
            self._component_config(pipe, "transformer").config, "HunyuanImage", self.title
        )

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        return hunyuan.encode_without_padding(pipe, captions)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy_latents,
            timestep=timesteps.to(noisy_latents.dtype),
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_embeds_mask"],
            encoder_hidden_states_2=cond["prompt_embeds_2"],
            encoder_attention_mask_2=cond["prompt_embeds_mask_2"],
            return_dict=False,
        )[0]
        return prediction

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        with _guidance(pipe, options["guidance_scale"]):
            return super().sample(pipe, cond, negative_cond, noise, **options)

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """Pad quoted text of length zero, which the pipeline cannot reshape."""
        return {name: pad_text(value, 1) for name, value in cond.items()}

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        guiders = (pipe.guider, pipe.ocr_guider)
        return any(guider is not None and guider._enabled and guider.num_conditions > 1 for guider in guiders)


@contextlib.contextmanager
def _guidance(pipe: Any, scale: float | None) -> Iterator[None]:
    """Give the pipeline guiders of this scale within the context; None keeps the published ones."""
    from diffusers import AdaptiveProjectedMixGuidance

    published = {name: getattr(pipe, name) for name in HunyuanImage.components.always_loaded}
    if scale is not None:
        for name, guider in published.items():
            config = dict(guider.config) if guider is not None else {}
            config |= {"guidance_scale": scale, "enabled": scale > 1}
            setattr(pipe, name, AdaptiveProjectedMixGuidance.from_config(config))
    try:
        yield
    finally:
        for name, guider in published.items():
            setattr(pipe, name, guider)
