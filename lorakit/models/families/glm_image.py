"""GLM-Image: a language model writes the picture coarsely in tokens, and this transformer paints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.core.errors import ConfigError
from lorakit.models.families import text_encoder_replay
from lorakit.models.families.by_length import TEXT_MASK, UnpaddedTextFamily
from lorakit.models.families.family import NO_SHIFT, Conditioning, ConditioningTensors
from lorakit.models.families.packing import unshift_timestep

if TYPE_CHECKING:
    import torch
    from PIL import Image

PIXELS = 8  # per latent and side, in the published autoencoder


class GlmImage(UnpaddedTextFamily):
    """Z.ai 2026, https://huggingface.co/zai-org/GLM-Image. The text is what the caption quotes."""

    name = "glm-image"
    title = "GLM-Image"
    pipelines = ("GlmImagePipeline",)
    rank16 = "9.8 M"
    licence = "MIT"
    text_parts = ("text_", "tokenizer", "processor", "vision_language_encoder")
    # mean and deviation are all that the pipeline applies
    vae_settings: ClassVar[Mapping[str, Any]] = {"scaling_factor": 1.0, **NO_SHIFT}
    patch = 4  # a coarse token covers four latents per side
    own_shift = True
    sized = True

    def encode(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        pictures: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        if captions and size is None:
            raise ConfigError("GLM-Image writes its coarse picture for one size, and none was given")
        conds = super().encode(pipe, captions)
        return [
            cond | {"prior_token_ids": _written(pipe, caption, *(size or (0, 0)))}
            for caption, cond in zip(captions, conds, strict=True)
        ]

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        embeds, _ = pipe.encode_prompt(captions, False, device=pipe.text_encoder.device)
        return {"prompt_embeds": embeds, TEXT_MASK: embeds.new_ones(embeds.shape[:2], dtype=bool)}

    def _predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        text, prior = cond["prompt_embeds"], cond["prior_token_ids"]
        size = text.new_tensor([PIXELS * side for side in noisy.shape[2:]]).expand(len(noisy), -1)
        prediction: torch.Tensor = denoiser(
            hidden_states=noisy,
            encoder_hidden_states=text,
            prior_token_id=prior,
            prior_token_drop=torch.zeros_like(prior, dtype=torch.bool),
            timestep=unshift_timestep(t, noisy.shape[2] * noisy.shape[3] // 4) - 1,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            return_dict=False,
        )[0]
        return prediction

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """The pipeline refuses two texts of different lengths, but encodes such ones itself."""
        texts = cond["prompt_embeds"], None if negative is None else negative["prompt_embeds"]
        with text_encoder_replay.override_encode_prompt(pipe, lambda *_, **__: texts):
            return super()._run(pipe, cond, None, settings)


def _written(pipe: Any, caption: str, width: int, height: int) -> torch.Tensor:
    """Tokens (N,) of the coarse picture for a caption: one drawing, the same at every call."""
    import torch

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        tokens, _, _ = pipe.generate_prior_tokens([caption], height, width, device=pipe.text_encoder.device)
    written: torch.Tensor = tokens[0]
    return written
