"""Ideogram 4: text and picture in one sequence, and a second transformer for guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families import text_encoder_replay
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, pad_text, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Ideogram4(Family):
    """Ideogram 2026, https://github.com/ideogram-oss/ideogram4. Of its two transformers, the conditional one
    is trained; the other only guides samples."""

    name = "ideogram4"
    title = "Ideogram 4"
    pipelines = ("Ideogram4Pipeline",)
    rank16 = "20.1 M"
    licence = "Ideogram 4 non-commercial"
    own_shift = True
    left_out = ("prompt_enhancer_head",)
    drawn_with = ("unconditional_transformer",)
    call: ClassVar[Mapping[str, Any]] = {"guidance_schedule": None}
    # patches are folded with the channels last, unlike those of Flux.2 with the same autoencoder
    vae_settings: ClassVar[Mapping[str, Any]] = {"patch_channels_last": True}

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        length, device = max_sequence_length(pipe, 2048), pipe.text_encoder.device
        embeds, _, segments, _ = pipe.encode_prompt(captions, 0, 0, length, device)
        kept = segments[0] == 1
        embeds = embeds[:, kept].to(pipe.text_encoder.dtype)  # computed in it, and half as large
        return {"prompt_embeds": embeds, "text_mask": kept[None, kept]}  # (1, L, 13 layers * D), (1, L)

    def collate(self, conds: Sequence[Conditioning]) -> Conditioning:
        """Shorter captions are filled up on the left."""
        from torch.nn.utils.rnn import pad_sequence

        return {
            name: pad_sequence([cond[name] for cond in conds], batch_first=True, padding_side="left")
            for name in conds[0]
        }

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        (count, length), (height, width) = cond["text_mask"].shape, noisy.shape[2:]
        text, positions, segments, indicator = _sequence(cond, height, width)
        picture = pack_latents(noisy, 1)
        prediction = denoiser(
            hidden_states=torch.cat([picture.new_zeros(count, length, picture.shape[2]), picture], dim=1),
            timestep=(1 - t / 1000).to(noisy.dtype),  # time and velocity run from noise to picture
            encoder_hidden_states=text,
            position_ids=positions,
            segment_ids=segments,
            indicator=indicator,
            return_dict=False,
        )[0]
        return -unpack_latents(prediction[:, length:], height, width, 1)

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """The pipeline takes no conditions but text: its encoder is answered for while it draws."""
        if settings["guidance_scale"] is None:  # most of the published schedule, which is of 48 steps only
            settings = {**settings, "guidance_scale": 7.0}
        with text_encoder_replay.override_encode_prompt(
            pipe, lambda grid_h, grid_w, **_: _sequence(cond, grid_h, grid_w)
        ):
            return super()._run(pipe, cond, None, settings)

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        return False

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise, 1)

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        count, length = cond["text_mask"].shape
        return {"prompt": [""] * count, "max_sequence_length": length}


def _sequence(cond: Conditioning, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Text features (B, L + H*W, D), then positions, segments and kinds of all tokens."""
    from diffusers import Ideogram4Pipeline

    text, mask = cond["prompt_embeds"], cond["text_mask"]
    lengths = mask.sum(1).tolist()
    ids = Ideogram4Pipeline._prepare_ids(lengths, height, width, text.shape[1], text.device)
    return pad_text(text, text.shape[1] + height * width), *ids
