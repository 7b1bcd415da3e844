"""Ideogram 4: text and image in one sequence, and a second transformer for guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit.models.families import prompt_override
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import pack_latents, pad_text, unpack_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import CallSpec, ComponentSpec, LatentSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Ideogram4(Family):
    """Ideogram 2026, https://github.com/ideogram-oss/ideogram4. Of its two transformers, the conditional one
    is trained; the other only guides samples."""

    name = "ideogram4"
    title = "Ideogram 4"
    pipelines = ("Ideogram4Pipeline",)
    rank16_parameters = "20.1 M"
    license = "Ideogram 4 non-commercial"
    components = ComponentSpec(
        optional=("prompt_enhancer_head",), sampling_only=("unconditional_transformer",)
    )
    call = CallSpec(extra_arguments={"guidance_schedule": None})
    # patches are folded with the channels last, unlike those of Flux.2 with the same VAE
    latents = LatentSpec(scheduler_shift=False, vae_overrides={"patch_channels_last": True})

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        length, device = max_sequence_length(pipe, 2048), pipe.text_encoder.device
        embeds, _, segments, _ = pipe.encode_prompt(captions, 0, 0, length, device)
        kept = segments[0] == 1
        embeds = embeds[:, kept].to(pipe.text_encoder.dtype)  # the dtype of the computation, half the size
        return {"prompt_embeds": embeds, "text_mask": kept[None, kept]}  # (1, L, 13 layers * D), (1, L)

    def collate(self, conds: Sequence[Conditioning], text_multiple: int = 1) -> Conditioning:
        """Stack conditions, shorter captions padded on the left."""
        from torch.nn.utils.rnn import pad_sequence

        return {
            name: pad_sequence([cond[name] for cond in conds], batch_first=True, padding_side="left")
            for name in conds[0]
        }

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        (count, length), (height, width) = cond["text_mask"].shape, noisy_latents.shape[2:]
        text, positions, segments, indicator = _sequence(cond, height, width)
        image = pack_latents(noisy_latents, 1)
        prediction = denoiser(
            hidden_states=torch.cat([image.new_zeros(count, length, image.shape[2]), image], dim=1),
            timestep=(1 - timesteps / 1000).to(
                noisy_latents.dtype
            ),  # time and velocity run from noise to image
            encoder_hidden_states=text,
            position_ids=positions,
            segment_ids=segments,
            indicator=indicator,
            return_dict=False,
        )[0]
        return -unpack_latents(prediction[:, length:], height, width, 1)

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Override `encode_prompt`: the call accepts no embeddings."""
        if settings["guidance_scale"] is None:  # most of the published schedule, which has exactly 48 steps
            settings = {**settings, "guidance_scale": 7.0}
        with prompt_override.override_encode_prompt(
            pipe, lambda grid_h, grid_w, **_: _sequence(cond, grid_h, grid_w)
        ):
            return super()._call_pipeline(pipe, cond, None, settings)

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        return False

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return pack_latents(noise, 1)

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        count, length = cond["text_mask"].shape
        return {"prompt": [""] * count, "max_sequence_length": length}


def _sequence(cond: Conditioning, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Return text embeddings (B, L + H*W, D), then positions, segments and kinds of all tokens."""
    from diffusers import Ideogram4Pipeline

    text, mask = cond["prompt_embeds"], cond["text_mask"]
    lengths = mask.sum(1).tolist()
    ids = Ideogram4Pipeline._prepare_ids(lengths, height, width, text.shape[1], text.device)
    return pad_text(text, text.shape[1] + height * width), *ids
