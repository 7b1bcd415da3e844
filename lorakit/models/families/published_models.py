"""Published base models: their denoisers, without weights, and the shapes that they are trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lorakit.models.families.family import Family

_XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
_SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
_KLEIN: dict[str, Any] = {"guidance_embeds": False, "num_attention_heads": 24, "num_layers": 5}
_KLEIN |= {"num_single_layers": 20, "joint_attention_dim": 7680}
_KLEIN_9B = _KLEIN | {"num_attention_heads": 32, "num_layers": 8, "num_single_layers": 24}
_KLEIN_9B |= {"joint_attention_dim": 12288}


@dataclass(frozen=True)
class PublishedModel:
    """A published base model: its denoiser's class and settings, and the shapes that it is trained with."""

    title: str
    key: str
    """The name of its counts; of its recipe, if it has one."""
    family: str
    network_class: str
    resolution: int
    latents: tuple[int, ...]
    """Shape of one image's latents (C, ..., H, W) at this resolution."""
    text: dict[str, tuple[int, ...]]
    """Shapes of a caption's embeddings; of lengths that vary a usual one."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the defaults of the class in diffusers."""
    masks: tuple[str, ...] = ()
    """Those embeddings that are masks of truth values."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Attributes that the family sets on the network."""
    hub_ids: tuple[str, ...] = ()
    """Names on the model hub whose network this is."""

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return the shapes and types of a caption's embeddings."""
        import torch

        return {
            name: (shape, torch.bool if name in self.masks else torch.float32)
            for name, shape in self.text.items()
        }

    def latents_at(self, width: int, height: int) -> tuple[int, ...]:
        """Return the shape of the latents of another image size in pixels."""
        per_latent = self.resolution // self.latents[-1]
        return (*self.latents[:-2], height // per_latent, width // per_latent)

    def build(self) -> nn.Module:
        """Build the network without weights."""
        import diffusers
        import torch

        with torch.device("meta"):
            network: nn.Module = getattr(diffusers, self.network_class)(**self.config)
        for name, value in self.attributes.items():
            setattr(network, name, value)
        return network


_FLUX_TEXT = {"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)}
_UNET = "UNet2DConditionModel"
PUBLISHED_MODELS = (
    PublishedModel(
        "Stable Diffusion 1.5", "sd15", "sd15", _UNET, 512, (4, 64, 64), {"prompt_embeds": (77, 768)},
        {"cross_attention_dim": 768},
        hub_ids=("stable-diffusion-v1-5/stable-diffusion-v1-5",),
    ),
    PublishedModel(
        "Stable Diffusion XL", "sdxl", "sdxl", _UNET, 1024, (4, 128, 128),
        {"prompt_embeds": (77, 2048), "pooled_prompt_embeds": (1280,)}, _XL,
        hub_ids=("stabilityai/stable-diffusion-xl-base-1.0",),
    ),
    PublishedModel(
        "Sana 1.6B", "sana", "sana", "SanaTransformer2DModel", 1024, (32, 32, 32),
        {"prompt_embeds": (300, 2304), "prompt_attention_mask": (300,)}, masks=("prompt_attention_mask",),
        hub_ids=("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",),
    ),
    PublishedModel(
        "Stable Diffusion 3.5 Medium", "sd35", "sd3", "SD3Transformer2DModel", 1024, (16, 128, 128),
        {"prompt_embeds": (333, 4096), "pooled_prompt_embeds": (2048,)}, _SD35_MEDIUM,
        hub_ids=("stabilityai/stable-diffusion-3.5-medium",),
    ),
    PublishedModel(
        "Flux.2 klein 4B", "flux2-klein", "flux2", "Flux2Transformer2DModel", 768, (128, 48, 48),
        {"prompt_embeds": (512, 7680)}, _KLEIN,
        hub_ids=("black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-4B"),
    ),
    PublishedModel(
        "Z-Image", "z-image", "z-image", "ZImageTransformer2DModel", 1024, (16, 128, 128),
        {"prompt_embeds": (128, 2560), "text_mask": (128,)}, masks=("text_mask",),
        hub_ids=("Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"),
    ),
    PublishedModel(
        "Chroma", "chroma", "chroma", "ChromaTransformer2DModel", 1024, (16, 128, 128),
        {"prompt_embeds": (512, 4096), "prompt_attention_mask": (512,)},
        hub_ids=("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"),
    ),
    PublishedModel(
        "Flux.2 klein 9B", "flux2-klein-9b", "flux2", "Flux2Transformer2DModel", 1024, (128, 64, 64),
        {"prompt_embeds": (512, 12288)}, _KLEIN_9B,
        hub_ids=("black-forest-labs/FLUX.2-klein-base-9B", "black-forest-labs/FLUX.2-klein-9B"),
    ),
    PublishedModel(
        "Flux.1 dev", "flux1-dev", "flux1", "FluxTransformer2DModel", 1024, (16, 128, 128), _FLUX_TEXT,
        {"guidance_embeds": True},
        hub_ids=("black-forest-labs/FLUX.1-dev",),
    ),
    PublishedModel(
        "Krea 2", "krea2", "krea2", "Krea2Transformer2DModel", 1024, (16, 128, 128),
        {"prompt_embeds": (128, 12, 2560), "prompt_embeds_mask": (128,)}, masks=("prompt_embeds_mask",),
        hub_ids=("krea/Krea-2-Raw",),
    ),
    PublishedModel(
        "Wan 2.1 14B, 17 frames", "wan", "wan", "WanTransformer3DModel", 480, (16, 5, 60, 60),
        {"prompt_embeds": (512, 4096)}, attributes={"expand_timesteps": False},
        hub_ids=("Wan-AI/Wan2.1-T2V-14B-Diffusers",),
    ),
    PublishedModel(
        "Qwen-Image", "qwen-image", "qwen-image", "QwenImageTransformer2DModel", 1024, (16, 128, 128),
        {"prompt_embeds": (128, 3584), "prompt_embeds_mask": (128,)}, masks=("prompt_embeds_mask",),
        hub_ids=("Qwen/Qwen-Image", "Qwen/Qwen-Image-2512"),
    ),
)  # fmt: skip


def published_model(base: str) -> PublishedModel | None:
    """Return the model of a hub id, with or without revision, or None."""
    name = base.partition("@")[0].lower()
    return next((m for m in PUBLISHED_MODELS if name in [one.lower() for one in m.hub_ids]), None)


def model_of_family(family: Family) -> PublishedModel | None:
    """Return the first published model of a family, or None."""
    return next((model for model in PUBLISHED_MODELS if model.family == family.name), None)
