"""Bria FIBO: a transformer that reads every layer of a small language model, one in each block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families import text_encoder_replay
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, position_ids, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Fibo(Family):
    """Bria 2025, https://arxiv.org/abs/2511.06876. Captions are JSON, as the model was trained on."""

    name = "fibo"
    title = "Bria FIBO"
    pipelines = ("BriaFiboPipeline",)
    rank16 = "26.1 M"
    licence = "CC BY-NC 4.0 (commercial use by agreement)"

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        import torch

        *_, layers, _ = pipe.encode_prompt(
            captions,
            pipe.text_encoder.device,
            guidance_scale=1.0,
            max_sequence_length=max_sequence_length(pipe, 3000),
        )
        stacked = torch.stack(layers, dim=2)  # (1, L, layers, D)
        return {
            "layers": stacked,
            "text_mask": stacked.new_ones(stacked.shape[:2]),
        }  # one caption has no padding

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy.shape[2:]
        layers, tokens = list(cond["layers"].unbind(2)), pack_latents(noisy, 1)
        mask = torch.cat(
            [cond["text_mask"].bool(), tokens.new_ones(tokens.shape[:2], dtype=torch.bool)], dim=1
        )
        blocks = len(denoiser.transformer_blocks) + len(denoiser.single_transformer_blocks)
        prediction = denoiser(
            hidden_states=tokens,
            timestep=t.to(noisy.dtype),
            encoder_hidden_states=_embeds(layers),
            # the last ones, one for each block; the very last again where there are too few
            text_encoder_layers=layers[-blocks:] + layers[-1:] * (blocks - len(layers)),
            joint_attention_kwargs={"attention_mask": mask[:, None, None]},
            txt_ids=noisy.new_zeros(layers[0].shape[1], 3),
            img_ids=position_ids(1, height, width, device=noisy.device),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width, 1)

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        with text_encoder_replay.lookup_encode_prompt(pipe, cond, negative, self._answer) as captions:
            return pipe(**captions, **settings)[0]

    def _answer(self, rows: list[Conditioning], against: list[Conditioning] | None) -> tuple[Any, ...]:
        """What the pipeline's `encode_prompt` returns, both sides padded to one length."""
        both = self.collate([*rows, *(against or [])])
        layers, mask, n = list(both["layers"].unbind(2)), both["text_mask"], len(rows)
        embeds = _embeds(layers)
        ids = embeds.new_zeros(n, embeds.shape[1], 3)
        positive, negative = [x[:n] for x in layers], [x[n:] for x in layers]
        if not against:
            return embeds, None, ids, mask, None, positive, None
        return embeds[:n], embeds[n:], ids, mask[:n], mask[n:], positive, negative

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        return scale > self.unguided

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise, 1)


def _embeds(layers: list[torch.Tensor]) -> torch.Tensor:
    """(B, L, 2 D): the last two layers, the last one first."""
    import torch

    return torch.cat([layers[-1], layers[-2]], dim=-1)
