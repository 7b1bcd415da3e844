"""The network of Cosmos-Predict2, as Anima and the text-to-image model of NVIDIA use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.specs import LatentSpec

if TYPE_CHECKING:
    import torch


class CosmosFamily(Family):
    """A family whose network gets an image as a video of one frame, and times from 0 to 1."""

    latents = LatentSpec(patch_size=2)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy_latents[:, :, None],
            timestep=timesteps.to(noisy_latents.dtype) / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            # 0 for each latent: no side of the image is padded
            padding_mask=noisy_latents.new_zeros(1, 1, *noisy_latents.shape[2:]),
            return_dict=False,
        )[0]
        return prediction[:, :, 0]

    def _max_latent_side(self, pipe: Any) -> int | None:
        config = self._component_config(pipe, "transformer").config
        patches = [
            size // patch for size, patch in zip(config["max_size"], config["patch_size"], strict=True)
        ]
        # learned positions have a table for each axis, computed ones a table of the longest axis
        most = min(patches[1:]) if config["extra_pos_embed_type"] else max(patches)
        return int(most * config["patch_size"][1])

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return noise[:, :, None]
