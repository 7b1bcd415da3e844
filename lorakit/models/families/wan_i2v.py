"""Wan 2.1 and 2.2 from an image to a video: the first frame and a mask join the noise as channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.models.families.conditioned import ConditionedFamily, scale_pixels, to_pil_images
from lorakit.models.families.family import Conditioning, ConditioningTensors
from lorakit.models.families.pipeline_folder import LORAKIT_SETTINGS_FILE, max_sequence_length
from lorakit.models.families.specs import ComponentSpec, ConditioningSpec
from lorakit.models.families.wan import Wan

if TYPE_CHECKING:
    import torch
    from PIL import Image


TEXT_LENGTH = 512
"""Tokens of the text; in 2.1 the tokens of the image precede them."""


class WanImageToVideo(ConditionedFamily, Wan):
    """Wan Team 2025, https://arxiv.org/abs/2503.20314. 2.1 also attends to CLIP's view of the first
    frame; 2.2 has two experts instead, and no image encoder."""

    name = "wan-i2v"
    title = "Wan 2.1 and 2.2 Image-to-Video"
    pipelines = ("WanImageToVideoPipeline",)
    rank16_parameters = "65.5 M (2.1), 104.9 M (2.2)"
    components = ComponentSpec(
        experts=("transformer_2",), image_encoders=("image_encoder", "image_processor")
    )
    conditioning = ConditioningSpec(
        accepted=("source",), source_is_image=True, depends_on_frames=True, one_prompt_per_call=True
    )

    def _configure_pipeline(self, pipe: Any) -> None:
        super()._configure_pipeline(pipe)
        if pipe.config.expand_timesteps:
            raise ConfigError(
                "the small model of Wan 2.2 cannot be trained from images yet: its first latents are clean",
                where=str(pipe.lorakit_folder),
                remedy="train it on text: write WanPipeline as _class_name in its model_index.json",
            )
        network = self._component_config(pipe, "transformer").config
        if network.get("image_dim") and max_sequence_length(pipe, TEXT_LENGTH) != TEXT_LENGTH:
            raise ConfigError(
                f"its network separates text from image after {TEXT_LENGTH} tokens, no other length",
                where=str(pipe.lorakit_folder / LORAKIT_SETTINGS_FILE),
                remedy="remove max_sequence_length",
            )
        if network.get("pos_embed_seq_len"):
            raise ConfigError(
                "a model between a first and a last frame cannot be trained yet",
                where=str(pipe.lorakit_folder),
                remedy="use a base model that takes the first frame only",
            )

    def encode_conditioning(self, pipe: Any, images: ConditioningTensors, frames: int = 1) -> Conditioning:
        """Encode the first frame: `source_latents` (N, C, F, h, w) of a video that is gray after it, and
        `image_embeds` (N, tokens, D) of models with an image encoder."""
        import torch

        frame = scale_pixels(images["source"])[:, :, None]
        video = torch.cat([frame, frame.new_zeros(*frame.shape[:2], frames - 1, *frame.shape[3:])], dim=2)
        with torch.no_grad():
            encoded = {"source_latents": self._encode_pixels(pipe, video)}
            if pipe.image_encoder is not None:
                pictures = to_pil_images(images["source"])
                views = [pipe.encode_image(each, pipe.image_encoder.device) for each in pictures]
                encoded["image_embeds"] = torch.cat(views)
        return encoded

    def _predict_rows(
        self, network: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        first_frame = cond["source_latents"][:, 0]
        channels = network.config.in_channels - noisy_latents.shape[1] - first_frame.shape[1]
        mask = torch.zeros_like(noisy_latents[:, :1]).repeat(1, channels, 1, 1, 1)
        mask[:, :, 0] = 1  # a channel for each frame of a latent; the first latent is one frame
        views = cond.get("image_embeds")
        prediction: torch.Tensor = network(
            hidden_states=torch.cat([noisy_latents, mask, first_frame.to(noisy_latents)], dim=1),
            timestep=timesteps,
            encoder_hidden_states=cond["prompt_embeds"],
            encoder_hidden_states_image=None if views is None else views[:, 0],
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
        return self._sample_rows(super().sample_videos, pipe, cond, negative_cond, noise, **options)

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"image": to_pil_images(images["source"][0])[0]}

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        # the pipeline encodes the image itself
        return super()._text_arguments(pipe, {k: v for k, v in cond.items() if k != "image_embeds"})
