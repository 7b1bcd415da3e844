"""HunyuanVideo 1.5: a joint transformer, with places for a first frame and its picture that stay empty."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorakit.models.families import hunyuan
from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import pad_text
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch
    from PIL import Image

PICTURE_TOKENS = 729  # of the picture that text to video has none of; the pipeline's number


class HunyuanVideo15(VideoFamily):
    """Tencent 2025, https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5."""

    name = "hunyuan-video-1.5"
    title = "HunyuanVideo 1.5"
    pipelines = ("HunyuanVideo15Pipeline",)
    rank16 = "28.8 M"
    licence = "Tencent Hunyuan community"
    always = ("guider", "vae")  # without its autoencoder the pipeline cannot be built
    guidance = ""  # it belongs to the guider
    fps = 24.0

    def _settle(self, pipe: Any) -> None:
        super()._settle(pipe)
        pipe.vae.enable_slicing()  # it mixes up the masks of a batch
        hunyuan.refuse_distilled(self._config(pipe, "transformer")[1], "HunyuanVideo 1.5", self.title)

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        return hunyuan.encode(pipe, captions)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        empty = noisy.new_zeros(len(noisy), noisy.shape[1] + 1, *noisy.shape[2:])  # a frame and its mask
        prediction: torch.Tensor = denoiser(
            hidden_states=torch.cat([noisy, empty], dim=1),
            timestep=t.to(noisy.dtype),
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_embeds_mask"],
            encoder_hidden_states_2=cond["prompt_embeds_2"],
            encoder_attention_mask_2=cond["prompt_embeds_mask_2"],
            image_embeds=noisy.new_zeros(len(noisy), PICTURE_TOKENS, denoiser.config.image_embed_dim),
            return_dict=False,
        )[0]
        return prediction

    def films(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[list[Image.Image]]:
        with _guided(pipe, options["guidance"]):
            return super().films(pipe, cond, negative, noise, **options)

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """The pipeline cannot reshape a quoted text of length zero."""
        return {name: pad_text(value, 1) for name, value in cond.items()}

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        return bool(pipe.guider._enabled and pipe.guider.num_conditions > 1)


@contextlib.contextmanager
def _guided(pipe: Any, scale: float | None) -> Iterator[None]:
    """The pipeline with a guider of this scale; None leaves the one it was published with."""
    own = pipe.guider
    if scale is not None:
        settings = dict(own.config) | {"guidance_scale": scale, "enabled": scale > 1}
        pipe.guider = type(own).from_config(settings)
    try:
        yield
    finally:
        pipe.guider = own
