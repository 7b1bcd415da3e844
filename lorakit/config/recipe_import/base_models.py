"""Base models by the words of other trainers, and the modules that those trainers adapt."""

from __future__ import annotations

import re

_TABLE = """
anima circlestone-labs/Anima-Base-v1.0-Diffusers
auraflow fal/AuraFlow-v0.3
chroma lodestones/Chroma1-HD
ernie baidu/ERNIE-Image
fluxkontext black-forest-labs/FLUX.1-Kontext-dev
fluxfill black-forest-labs/FLUX.1-Fill-dev
fluxschnell black-forest-labs/FLUX.1-schnell
flux2klein9b black-forest-labs/FLUX.2-klein-base-9B
flux2klein black-forest-labs/FLUX.2-klein-base-4B
cosmospredict2 nvidia/Cosmos-Predict2-2B-Text2Image
cosmos2 nvidia/Cosmos-Predict2-2B-Text2Image
flux2 black-forest-labs/FLUX.2-dev
flux black-forest-labs/FLUX.1-dev
hidream HiDream-ai/HiDream-I1-Full
hunyuanimage hunyuanvideo-community/HunyuanImage-2.1-Diffusers
hunyuanvideo hunyuanvideo-community/HunyuanVideo
krea2 krea/Krea-2-Raw
longcat meituan-longcat/LongCat-Image
lumina Alpha-VLLM/Lumina-Image-2.0
ltx2 Lightricks/LTX-2
ltxvideo2 Lightricks/LTX-2
ltxvideo Lightricks/LTX-Video
wan22i2v Wan-AI/Wan2.2-I2V-A14B-Diffusers
wani2v Wan-AI/Wan2.1-I2V-14B-480P-Diffusers
pixart PixArt-alpha/PixArt-Sigma-XL-2-1024-MS
qwenimageeditplus Qwen/Qwen-Image-Edit-2509
qwenimageedit Qwen/Qwen-Image-Edit
qwenimage Qwen/Qwen-Image
sana Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers
sd35large stabilityai/stable-diffusion-3.5-large
sd3 stabilityai/stable-diffusion-3.5-medium
sdxl stabilityai/stable-diffusion-xl-base-1.0
sd15 stable-diffusion-v1-5/stable-diffusion-v1-5
wan22 Wan-AI/Wan2.2-T2V-A14B-Diffusers
wan Wan-AI/Wan2.1-T2V-14B-Diffusers
zimage Tongyi-MAI/Z-Image
"""
HUB_IDS = dict(line.split() for line in _TABLE.strip().splitlines())
"""Models on the hub by their words in trainers, without signs; of those that a word starts with, the longest
counts."""


def hub_id(word: str) -> str | None:
    """Return the model on the hub for a trainer's word for a model, such as `qwen_image_edit_plus`."""
    bare = re.sub(r"[^a-z0-9]", "", word.lower())
    fits = [name for name in HUB_IDS if bare.startswith(name)]
    return HUB_IDS[max(fits, key=len)] if fits else None


_UNET_WORDS = ("sdxl", "sd1", "sd2", "stablediffusionxl", "stablediffusion1", "stablediffusion2")
_UNET_TARGETS = [r"re:.*\.attentions\.\d+\.(proj_in|proj_out|transformer_blocks\..*)"]
_BLOCK_TARGETS = [r"re:.*(blocks|layers|refiner)\.\d+\..*"]
OTHER_PARTS = "the other components of the model come from {}, or from a folder after @"


def is_unet(word: str) -> bool:
    """Return True for a model word of Stable Diffusion 1.5, 2 or XL."""
    bare = re.sub(r"[^a-z0-9]", "", word.lower())
    return bare.startswith(_UNET_WORDS)


def linear_layers(*, unet: bool) -> list[str]:
    """Return `adapter.targets` for all linear layers of the blocks, which other trainers adapt."""
    return list(_UNET_TARGETS if unet else _BLOCK_TARGETS)
