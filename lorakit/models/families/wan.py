"""Wan 2.1 and 2.2: a transformer over videos, or two experts, one for high and one for low noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import ComponentSpec, LatentSpec
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch


class Wan(VideoFamily):
    """Wan Team 2025, https://arxiv.org/abs/2503.20314. Both experts of 2.2 are trained, each at its own
    noise levels."""

    name = "wan"
    title = "Wan 2.1 and 2.2"
    pipelines = ("WanPipeline",)
    rank16_parameters = "52.4 M"
    license = "Apache-2.0"
    components = ComponentSpec(experts=("transformer_2",))
    latents = LatentSpec(patch_size=2)

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """Return the network, or both experts as one."""
        # tokens of 2.2's small model have a timestep each, which only the pipeline's configuration says
        for network in (pipe.transformer, pipe.transformer_2):
            if network is not None:
                network.expand_timesteps = bool(pipe.config.expand_timesteps)
        if pipe.transformer_2 is None:
            return super().denoiser(pipe)
        from lorakit.models.families.networks.experts import NoiseLevelExperts

        experts: NoiseLevelExperts | None = getattr(pipe, "lorakit_experts", None)
        if experts is None or experts.transformer is not pipe.transformer:
            experts = NoiseLevelExperts(pipe.transformer, pipe.transformer_2, pipe.config.boundary_ratio)
            pipe.lorakit_experts = experts
        return experts

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 512),
            device=pipe.text_encoder.device,
        )
        return {"prompt_embeds": embeds}  # (1, 512, D), zeros after the caption

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        if not hasattr(denoiser, "split_rows"):
            return self._predict_rows(denoiser, noisy_latents, timesteps, cond)
        import torch

        parts = list(denoiser.split_rows(timesteps))
        predictions = [
            self._predict_rows(
                part.network,
                noisy_latents[part.rows],
                timesteps[part.rows],
                {name: value[part.rows] for name, value in cond.items()},
            )
            for part in parts
        ]
        return torch.cat(predictions)[torch.cat([part.rows for part in parts]).argsort()]

    def _predict_rows(
        self, network: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """Return the prediction of one network: the only one, or an expert."""
        if network.expand_timesteps:
            timesteps = timesteps[:, None].expand(-1, noisy_latents[0, 0, :, ::2, ::2].numel())
        prediction: torch.Tensor = network(
            hidden_states=noisy_latents,
            timestep=timesteps,
            encoder_hidden_states=cond["prompt_embeds"],
            return_dict=False,
        )[0]
        return prediction
