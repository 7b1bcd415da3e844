"""LTX-2: a transformer over a video and its sound, of which the video is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import unpack_video_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.specs import CallSpec, ComponentSpec, TextSpec
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT_KEYS = ("prompt_embeds", "audio_prompt_embeds", "prompt_attention_mask")


class LTX2(VideoFamily):
    """HaCohen et al. 2026, https://arxiv.org/abs/2601.03233.

    Training uses no sound: video and sound do not attend to each other then, as in the pipeline's own
    isolated call. Samples are generated as published, with sound, which is discarded.
    """

    name = "ltx-2"
    title = "LTX-2"
    pipelines = ("LTX2Pipeline",)
    rank16_parameters = "50.3 M"
    license = "LTX-2 community"
    target_modules = r".*transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
    components = ComponentSpec(
        optional=("prompt_enhancer", "duration_head"), sampling_only=("audio_vae", "vocoder")
    )
    text = TextSpec(component_prefixes=("text_", "tokenizer", "processor", "connectors"))
    # plain guidance of the video: no further passes without layers or sound
    call = CallSpec(
        extra_arguments={
            **{"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0, "audio_guidance_scale": 1.0},
            **{"audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0},
        }
    )
    fps = 24.0

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        """Encode with the connectors after the language model, whose many layers would fill the cache."""
        device = pipe.text_encoder.device
        embeds, mask, *_ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 1024),
            device=device,
        )
        embeddings = pipe.connectors(embeds, mask, padding_side=pipe.tokenizer.padding_side)
        return dict(zip(TEXT_KEYS, embeddings, strict=True))  # (1, 1024, D), (1, 1024, D of sound), (1, 1024)

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        frames, height, width = noisy_latents.shape[2:]
        text, sound_text, mask = (cond[name] for name in TEXT_KEYS)
        prediction = denoiser(
            hidden_states=self._pack_latents(noisy_latents),
            audio_hidden_states=noisy_latents.new_zeros(
                len(noisy_latents), 1, denoiser.config.audio_in_channels
            ),
            encoder_hidden_states=text,
            audio_encoder_hidden_states=sound_text,
            timestep=timesteps,
            sigma=timesteps,
            encoder_attention_mask=mask,
            audio_encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            fps=self.fps,
            audio_num_frames=1,
            isolate_modalities=True,
            use_cross_timestep=True,
            return_dict=False,
        )[0]
        return unpack_video_latents(prediction, noisy_latents)

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        with _override_connectors(pipe, [cond] if negative_cond is None else [negative_cond, cond]):
            return super()._call_pipeline(pipe, cond, negative_cond, settings)

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        return {name: cond[name] for name in ("prompt_embeds", "prompt_attention_mask")}

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.flatten(2).transpose(1, 2)  # (B, F*H*W, C)


@contextlib.contextmanager
def _override_connectors(pipe: Any, conds: list[Conditioning]) -> Iterator[None]:
    """Make the pipeline's connectors return these embeddings within the context, the negative ones first."""
    import torch

    embeddings = [torch.cat([cond[name] for cond in conds]) for name in TEXT_KEYS]
    connectors = pipe.__dict__["connectors"]
    pipe.__dict__["connectors"] = lambda *_, **__: embeddings
    try:
        yield
    finally:
        pipe.__dict__["connectors"] = connectors
