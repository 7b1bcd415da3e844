"""HunyuanImage 2.1: a joint transformer, with a second encoder for the text that a caption quotes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorakit.models.families import hunyuan
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pad_text

if TYPE_CHECKING:
    import torch
    from PIL import Image


class HunyuanImage(Family):
    """Tencent 2025, https://github.com/Tencent-Hunyuan/HunyuanImage-2.1."""

    name = "hunyuan-image"
    title = "HunyuanImage 2.1"
    pipelines = ("HunyuanImagePipeline",)
    rank16 = "33.0 M"
    licence = "Tencent Hunyuan community"
    always = ("guider", "ocr_guider")
    guidance = "distilled_guidance_scale"  # idle in this model, whose scale belongs to its guiders

    def _settle(self, pipe: Any) -> None:
        super()._settle(pipe)
        hunyuan.refuse_distilled(self._config(pipe, "transformer")[1], "HunyuanImage", self.title)

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        return hunyuan.encode(pipe, captions)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy,
            timestep=t.to(noisy.dtype),
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
        negative: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        with _guided(pipe, options["guidance"]):
            return super().sample(pipe, cond, negative, noise, **options)

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """The pipeline cannot reshape a quoted text of length zero."""
        return {name: pad_text(value, 1) for name, value in cond.items()}

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        guiders = (pipe.guider, pipe.ocr_guider)
        return any(guider is not None and guider._enabled and guider.num_conditions > 1 for guider in guiders)


@contextlib.contextmanager
def _guided(pipe: Any, scale: float | None) -> Iterator[None]:
    """The pipeline with guiders of this scale; None leaves those it was published with."""
    from diffusers import AdaptiveProjectedMixGuidance

    own = {name: getattr(pipe, name) for name in HunyuanImage.always}
    if scale is not None:
        for name, guider in own.items():
            settings = dict(guider.config) if guider is not None else {}
            settings |= {"guidance_scale": scale, "enabled": scale > 1}
            setattr(pipe, name, AdaptiveProjectedMixGuidance.from_config(settings))
    try:
        yield
    finally:
        for name, guider in own.items():
            setattr(pipe, name, guider)
