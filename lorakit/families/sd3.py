"""Stable Diffusion 3 and 3.5: a joint text-image transformer trained with rectified flow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lorakit.families.base import Cond, Family
from lorakit.families.folder import max_sequence_length

if TYPE_CHECKING:
    import torch


class StableDiffusion3(Family):
    """Esser et al. 2024, https://arxiv.org/abs/2403.03206."""

    name = "sd3"
    title = "Stable Diffusion 3 / 3.5"
    pipelines = ("StableDiffusion3Pipeline",)
    left_out = ("image_encoder", "feature_extractor")

    def _encode(self, pipe: Any, captions: list[str]) -> Cond:
        with self._text_width(pipe):
            embeds, _, pooled, _ = pipe.encode_prompt(
                captions,
                None,
                None,
                device=pipe.text_encoder.device,
                do_classifier_free_guidance=False,
                max_sequence_length=max_sequence_length(pipe, 256),
            )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}  # (B, L, D), (B, P)

    @contextlib.contextmanager
    def _text_width(self, pipe: Any) -> Iterator[None]:
        """Without T5 the pipeline pads with zeros and asks the transformer how wide; it may not be loaded."""
        if pipe.transformer is not None:
            yield
            return
        config = SimpleNamespace(**self._config(pipe, "transformer")[1])
        pipe.__dict__["transformer"] = SimpleNamespace(config=config)
        try:
            yield
        finally:
            pipe.__dict__["transformer"] = None

    def predict(self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy,
            timestep=t,
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return prediction

    def size_step(self, pipe: Any) -> int:
        vae, transformer = self._config(pipe, "vae")[1], self._config(pipe, "transformer")[1]
        return int(2 ** (len(vae["block_out_channels"]) - 1) * transformer["patch_size"])
