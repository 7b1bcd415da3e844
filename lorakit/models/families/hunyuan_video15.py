"""HunyuanVideo 1.5: a joint transformer; its inputs for a first frame stay empty in text-to-video."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lorakit.models.families import hunyuan
from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import pad_text
from lorakit.models.families.specs import CallSpec, ComponentSpec
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch
    from PIL import Image

IMAGE_TOKENS = 729  # of the first frame; the pipeline has this number in its code


class HunyuanVideo15(VideoFamily):
    """Tencent 2025, https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5."""

    name = "hunyuan-video-1.5"
    title = "HunyuanVideo 1.5"
    pipelines = ("HunyuanVideo15Pipeline",)
    rank16_parameters = "28.8 M"
    license = "Tencent Hunyuan community"
    # without its VAE the pipeline cannot be built
    components = ComponentSpec(always_loaded=("guider", "vae"))
    # the scale is a setting of the guider
    call = CallSpec(guidance_argument="")
    fps = 24.0

    def _configure_pipeline(self, pipe: Any) -> None:
        super()._configure_pipeline(pipe)
        pipe.vae.enable_slicing()  # it mixes up the attention masks of a batch
        hunyuan.refuse_distilled(
            self._component_config(pipe, "transformer").config, "HunyuanVideo 1.5", self.title
        )

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        return hunyuan.encode_without_padding(pipe, captions)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        empty = noisy_latents.new_zeros(
            len(noisy_latents), noisy_latents.shape[1] + 1, *noisy_latents.shape[2:]
        )  # a frame and its mask
        prediction: torch.Tensor = denoiser(
            hidden_states=torch.cat([noisy_latents, empty], dim=1),
            timestep=timesteps.to(noisy_latents.dtype),
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_attention_mask=cond["prompt_embeds_mask"],
            encoder_hidden_states_2=cond["prompt_embeds_2"],
            encoder_attention_mask_2=cond["prompt_embeds_mask_2"],
            image_embeds=noisy_latents.new_zeros(
                len(noisy_latents), IMAGE_TOKENS, denoiser.config.image_embed_dim
            ),
            return_dict=False,
        )[0]
        return prediction

    def sample_videos(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[list[Image.Image]]:
        with _guidance(pipe, options["guidance_scale"]):
            return super().sample_videos(pipe, cond, negative_cond, noise, **options)

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """Pad quoted text of length zero, which the pipeline cannot reshape."""
        return {name: pad_text(value, 1) for name, value in cond.items()}

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        return bool(pipe.guider._enabled and pipe.guider.num_conditions > 1)


@contextlib.contextmanager
def _guidance(pipe: Any, scale: float | None) -> Iterator[None]:
    """Give the pipeline a guider of this scale within the context; None keeps the published one."""
    published = pipe.guider
    if scale is not None:
        config = dict(published.config) | {"guidance_scale": scale, "enabled": scale > 1}
        pipe.guider = type(published).from_config(config)
    try:
        yield
    finally:
        pipe.guider = published
