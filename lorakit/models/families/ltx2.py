"""LTX-2: a transformer over a film and its sound, of which the film is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning
from lorakit.models.families.packing import unpack_video_latents
from lorakit.models.families.pipeline_folder import max_sequence_length
from lorakit.models.families.video import VideoFamily

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXTS = ("prompt_embeds", "audio_prompt_embeds", "prompt_attention_mask")


class LTX2(VideoFamily):
    """HaCohen et al. 2026, https://arxiv.org/abs/2601.03233.

    Clips are trained without sound, and stills have none: film and sound do not see each other then, as in
    the pipeline's own isolated call. Samples are drawn as published, with sound, which is thrown away.
    """

    name = "ltx-2"
    title = "LTX-2"
    pipelines = ("LTX2Pipeline",)
    rank16 = "50.3 M"
    licence = "LTX-2 community"
    targets = r".*transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
    left_out = ("prompt_enhancer", "duration_head")
    drawn_with = ("audio_vae", "vocoder")
    text_parts = ("text_", "tokenizer", "processor", "connectors")
    fps = 24.0
    # plain guidance of the film: no second or third pass with layers or sound left out
    call: ClassVar[Mapping[str, Any]] = {
        **{"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0, "audio_guidance_scale": 1.0},
        **{"audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0},
    }

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        """With the connectors behind the language model, whose many layers would be a large condition."""
        device = pipe.text_encoder.device
        embeds, mask, *_ = pipe.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length(pipe, 1024),
            device=device,
        )
        made = pipe.connectors(embeds, mask, padding_side=pipe.tokenizer.padding_side)
        return dict(zip(TEXTS, made, strict=True))  # (1, 1024, D), (1, 1024, D of sound), (1, 1024)

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        frames, height, width = noisy.shape[2:]
        film, sound, mask = (cond[name] for name in TEXTS)
        prediction = denoiser(
            hidden_states=self._pack(noisy),
            audio_hidden_states=noisy.new_zeros(len(noisy), 1, denoiser.config.audio_in_channels),
            encoder_hidden_states=film,
            audio_encoder_hidden_states=sound,
            timestep=t,
            sigma=t,
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
        return unpack_video_latents(prediction, noisy)

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        with _connected(pipe, [cond] if negative is None else [negative, cond]):
            return super()._run(pipe, cond, negative, settings)

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        return {name: cond[name] for name in ("prompt_embeds", "prompt_attention_mask")}

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.flatten(2).transpose(1, 2)  # (B, F*H*W, C)


@contextlib.contextmanager
def _connected(pipe: Any, conds: list[Conditioning]) -> Iterator[None]:
    """The pipeline with connectors that answer with these conditions, the negative before the other."""
    import torch

    answer = [torch.cat([cond[name] for cond in conds]) for name in TEXTS]
    own = pipe.__dict__["connectors"]
    pipe.__dict__["connectors"] = lambda *_, **__: answer
    try:
        yield
    finally:
        pipe.__dict__["connectors"] = own
