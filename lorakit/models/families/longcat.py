"""LongCat-Image: Flux.1's transformer conditioned on Qwen2.5-VL, with quoted words letter by letter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families import prompt_override
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, small_vector, unpack_latents
from lorakit.models.families.specs import CallSpec, LatentSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT_TOKENS = 512  # of a caption; image positions start after them


class LongCatImage(Family):
    """Meituan 2025, https://arxiv.org/abs/2512.07584."""

    name = "longcat-image"
    title = "LongCat-Image"
    pipelines = ("LongCatImagePipeline",)
    rank16_parameters = "26.1 M"
    license = "Apache-2.0"
    call = CallSpec(extra_arguments={"enable_prompt_rewrite": False})
    latents = LatentSpec(patch_size=2)

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        return {"prompt_embeds": pipe.encode_prompt(captions)[0]}  # (1, 512, D)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = noisy_latents.shape[2:]
        start = small_vector([1, TEXT_TOKENS, TEXT_TOKENS], noisy_latents)
        prediction = denoiser(
            hidden_states=pack_latents(noisy_latents),
            timestep=timesteps.to(noisy_latents.dtype) / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=_text_positions(noisy_latents.device),
            img_ids=position_ids(1, height // 2, width // 2, device=noisy_latents.device) + start,
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width)

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        # the pipeline accepts `prompt_embeds`, but then counts prompts that are None
        import torch

        def encode_rows(rows: list[Conditioning], _: Any) -> tuple[torch.Tensor, torch.Tensor]:
            embeds = torch.stack([row["prompt_embeds"] for row in rows])
            return embeds, _text_positions(embeds.device)

        with prompt_override.lookup_encode_prompt(pipe, cond, negative_cond, encode_rows) as captions:
            return pipe(**captions, **settings)[0]

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)


def _text_positions(device: torch.device) -> torch.Tensor:
    """Return positions (512, 3): 0, and twice the token's number."""
    import torch

    tokens = torch.arange(TEXT_TOKENS, device=device)
    return tokens[:, None] * small_vector([0, 1, 1], tokens)
