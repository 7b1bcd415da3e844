"""Bria FIBO: a transformer that reads every layer of a small language model, one in each block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families import prompt_override
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
    rank16_parameters = "26.1 M"
    license = "CC BY-NC 4.0 (commercial use by agreement)"

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        import torch

        *_, layers, _ = pipe.encode_prompt(
            captions,
            pipe.text_encoder.device,
            guidance_scale=1.0,
            max_sequence_length=max_sequence_length(pipe, 3000),
        )
        stacked = torch.stack(layers, dim=2)  # (1, L, layers, D)
        # one caption has no padding
        return {"layers": stacked, "text_mask": stacked.new_ones(stacked.shape[:2])}

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy_latents.shape[2:]
        layers, tokens = list(cond["layers"].unbind(2)), pack_latents(noisy_latents, 1)
        mask = torch.cat(
            [cond["text_mask"].bool(), tokens.new_ones(tokens.shape[:2], dtype=torch.bool)], dim=1
        )
        blocks = len(denoiser.transformer_blocks) + len(denoiser.single_transformer_blocks)
        prediction = denoiser(
            hidden_states=tokens,
            timestep=timesteps.to(noisy_latents.dtype),
            encoder_hidden_states=_embeds(layers),
            # the last layers, one for each block; the very last is repeated where there are too few
            text_encoder_layers=layers[-blocks:] + layers[-1:] * (blocks - len(layers)),
            joint_attention_kwargs={"attention_mask": mask[:, None, None]},
            txt_ids=noisy_latents.new_zeros(layers[0].shape[1], 3),
            img_ids=position_ids(1, height, width, device=noisy_latents.device),
            return_dict=False,
        )[0]
        return unpack_latents(prediction, height, width, 1)

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        with prompt_override.lookup_encode_prompt(pipe, cond, negative_cond, self._encode_rows) as captions:
            return pipe(**captions, **settings)[0]

    def _encode_rows(
        self, rows: list[Conditioning], negative_rows: list[Conditioning] | None
    ) -> tuple[Any, ...]:
        """Return the output of the pipeline's `encode_prompt`, all rows padded to one length."""
        batch = self.collate([*rows, *(negative_rows or [])])
        layers, mask, n = list(batch["layers"].unbind(2)), batch["text_mask"], len(rows)
        embeds = _embeds(layers)
        ids = embeds.new_zeros(n, embeds.shape[1], 3)
        positive, negative = [x[:n] for x in layers], [x[n:] for x in layers]
        if not negative_rows:
            return embeds, None, ids, mask, None, positive, None
        return embeds[:n], embeds[n:], ids, mask[:n], mask[n:], positive, negative

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        return scale > self.call.guidance_off

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise, 1)


def _embeds(layers: list[torch.Tensor]) -> torch.Tensor:
    """Join the last two layers, the last one first: (B, L, 2 D)."""
    import torch

    return torch.cat([layers[-1], layers[-2]], dim=-1)
