"""LongCat-Image: Flux.1's transformer conditioned on Qwen2.5-VL, quoted words letter by letter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families import text_encoder_replay
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT = 512  # tokens of a caption; picture positions start behind them


class LongCatImage(Family):
    """Meituan 2025, https://arxiv.org/abs/2512.07584."""

    name = "longcat-image"
    title = "LongCat-Image"
    pipelines = ("LongCatImagePipeline",)
    rank16 = "26.1 M"
    licence = "Apache-2.0"
    patch = 2
    call: ClassVar = {"enable_prompt_rewrite": False}

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        return {"prompt_embeds": pipe.encode_prompt(captions)[0]}  # (1, 512, D)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = noisy.shape[2:]
        start = noisy.new_tensor([1, TEXT, TEXT])
        prediction = denoiser(
            hidden_states=pack_latents(noisy),
            timestep=t.to(noisy.dtype) / 1000,
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=_text_positions(noisy.device),
            img_ids=position_ids(1, height // 2, width // 2, device=noisy.device) + start,
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width)

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        # the pipeline announces `prompt_embeds` and then counts the prompts it does not have
        import torch

        def give(rows: list[Conditioning], _: Any) -> tuple[torch.Tensor, torch.Tensor]:
            embeds = torch.stack([row["prompt_embeds"] for row in rows])
            return embeds, _text_positions(embeds.device)

        with text_encoder_replay.lookup_encode_prompt(pipe, cond, negative, give) as captions:
            return pipe(**captions, **settings)[0]

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise)


def _text_positions(device: torch.device) -> torch.Tensor:
    """(512, 3): kind 0, and along the diagonal."""
    import torch

    return torch.arange(TEXT, device=device)[:, None] * torch.tensor([0, 1, 1], device=device)
