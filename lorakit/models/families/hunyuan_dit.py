"""HunyuanDiT: a transformer that predicts noise or v, conditioned on a Chinese CLIP and on T5."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import NO_SHIFT, Conditioning, Family

if TYPE_CHECKING:
    import torch

PIXELS = 8  # per latent and side, written out in the pipeline too
TRAINED = 1024  # pixels per side that pictures are said to have had


class HunyuanDiT(Family):
    """Li et al. 2024, https://arxiv.org/abs/2405.08748."""

    name = "hunyuan-dit"
    title = "HunyuanDiT"
    pipelines = ("HunyuanDiTPipeline",)
    rank16 = "13.9 M"
    licence = "Tencent Hunyuan Community"
    objective = "ddpm"
    patch = 2
    left_out = ("safety_checker", "feature_extractor")
    call: ClassVar = {"use_resolution_binning": False}
    vae_settings = NO_SHIFT

    def recompute(self, denoiser: Any) -> None:
        # diffusers offers none for this network
        from torch.utils.checkpoint import checkpoint

        for block in denoiser.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        denoiser.gradient_checkpointing = True

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        cond: Conditioning = {}
        for index, suffix in enumerate(("", "_2")):  # CLIP of 77 tokens, T5 of 256
            embeds, _, mask, _ = pipe.encode_prompt(
                captions,
                device=pipe.text_encoder.device,
                do_classifier_free_guidance=False,
                text_encoder_index=index,
            )
            cond |= {f"prompt_embeds{suffix}": embeds, f"prompt_attention_mask{suffix}": mask}
        return cond

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = (PIXELS * side for side in noisy.shape[2:])
        sizes = cond["prompt_embeds"].new_tensor([TRAINED, TRAINED, height, width, 0, 0])
        prediction: torch.Tensor = denoiser(
            noisy,
            t.to(noisy.dtype),
            encoder_hidden_states=cond["prompt_embeds"],
            text_embedding_mask=cond["prompt_attention_mask"],
            encoder_hidden_states_t5=cond["prompt_embeds_2"],
            text_embedding_mask_t5=cond["prompt_attention_mask_2"],
            image_meta_size=sizes.repeat(len(noisy), 1),
            style=t.new_zeros(len(noisy)).long(),
            image_rotary_emb=_rotary(denoiser, noisy),
            return_dict=False,
        )[0]
        return prediction[:, : noisy.shape[1]]  # the rest is a variance, which training leaves alone


def _rotary(denoiser: Any, noisy: torch.Tensor) -> Any:
    """Positions stretched over the grid of a 512-pixel picture, which the model was first trained on."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    patch = denoiser.config.patch_size
    grid = tuple(side // patch for side in noisy.shape[2:])
    region = get_resize_crop_region_for_grid(grid, 512 // PIXELS // patch)
    dimension = denoiser.inner_dim // denoiser.num_heads
    return get_2d_rotary_pos_embed(dimension, region, grid, device=noisy.device, output_type="pt")
