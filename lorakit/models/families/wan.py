"""Wan 2.1 and 2.2: a transformer over clips, or two that share the noise levels out between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class Wan(VideoFamily):
    """Wan Team 2025, https://arxiv.org/abs/2503.20314. Of 2.2, both experts are trained, each at its own
    noise levels."""

    name = "wan"
    title = "Wan 2.1 and 2.2"
    pipelines = ("WanPipeline",)
    rank16 = "52.4 M"
    licence = "Apache-2.0"
    experts = ("transformer_2",)
    patch = 2

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """The network, or both experts as one."""
        # tokens of 2.2's small model have a time each, which only the pipeline knows
        for network in (pipe.transformer, pipe.transformer_2):
            if network is not None:
                network.timed_tokens = bool(pipe.config.expand_timesteps)
        if pipe.transformer_2 is None:
            return super().denoiser(pipe)
        from lorakit.models.families.networks.experts import NoiseLevelExperts

        made: NoiseLevelExperts | None = getattr(pipe, "lorakit_experts", None)
        if made is None or made.transformer is not pipe.transformer:
            made = NoiseLevelExperts(pipe.transformer, pipe.transformer_2, pipe.config.boundary_ratio)
            pipe.lorakit_experts = made
        return made

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 512),
            device=pipe.text_encoder.device,
        )
        return {"prompt_embeds": embeds}  # (1, 512, D), zeros behind the caption

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        if not hasattr(denoiser, "rows"):
            return _predict(denoiser, noisy, t, cond["prompt_embeds"])
        import torch

        shares = list(denoiser.rows(t))
        made = [_predict(one, noisy[rows], t[rows], cond["prompt_embeds"][rows]) for one, rows in shares]
        return torch.cat(made)[torch.cat([rows for _, rows in shares]).argsort()]


def _predict(network: Any, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    if network.timed_tokens:
        t = t[:, None].expand(-1, noisy[0, 0, :, ::2, ::2].numel())
    prediction: torch.Tensor = network(
        hidden_states=noisy, timestep=t, encoder_hidden_states=text, return_dict=False
    )[0]
    return prediction
