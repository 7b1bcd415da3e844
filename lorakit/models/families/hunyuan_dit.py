"""HunyuanDiT: a transformer that predicts noise or v, conditioned on a Chinese CLIP and on T5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.packing import small_vector
from lorakit.models.families.specs import NO_SHIFT, CallSpec, ComponentSpec, LatentSpec

if TYPE_CHECKING:
    import torch

PIXELS = 8  # per side of one latent; the pipeline has this number in its code
ORIGINAL_SIZE = 1024  # pixels per side, as the pipeline states it for every image


class HunyuanDiT(Family):
    """Li et al. 2024, https://arxiv.org/abs/2405.08748."""

    name = "hunyuan-dit"
    title = "HunyuanDiT"
    pipelines = ("HunyuanDiTPipeline",)
    rank16_parameters = "13.9 M"
    license = "Tencent Hunyuan Community"
    components = ComponentSpec(optional=("safety_checker", "feature_extractor"))
    call = CallSpec(extra_arguments={"use_resolution_binning": False})
    latents = LatentSpec(patch_size=2, vae_overrides=NO_SHIFT)
    objective = "ddpm"

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
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
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        height, width = (PIXELS * side for side in noisy_latents.shape[2:])
        sizes = small_vector([ORIGINAL_SIZE, ORIGINAL_SIZE, height, width, 0, 0], cond["prompt_embeds"])
        prediction: torch.Tensor = denoiser(
            noisy_latents,
            timesteps.to(noisy_latents.dtype),
            encoder_hidden_states=cond["prompt_embeds"],
            text_embedding_mask=cond["prompt_attention_mask"],
            encoder_hidden_states_t5=cond["prompt_embeds_2"],
            text_embedding_mask_t5=cond["prompt_attention_mask_2"],
            image_meta_size=sizes.repeat(len(noisy_latents), 1),
            style=timesteps.new_zeros(len(noisy_latents)).long(),
            image_rotary_emb=_rotary_embeddings(denoiser, noisy_latents),
            return_dict=False,
        )[0]
        return prediction[:, : noisy_latents.shape[1]]  # the rest is a variance, which is not trained


def _rotary_embeddings(denoiser: Any, noisy_latents: torch.Tensor) -> Any:
    """Return positions stretched over the grid of a 512-pixel image, the size of the first training."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    patch = denoiser.config.patch_size
    grid = tuple(side // patch for side in noisy_latents.shape[2:])
    region = get_resize_crop_region_for_grid(grid, 512 // PIXELS // patch)
    dimension = denoiser.inner_dim // denoiser.num_heads
    return get_2d_rotary_pos_embed(dimension, region, grid, device=noisy_latents.device, output_type="pt")
