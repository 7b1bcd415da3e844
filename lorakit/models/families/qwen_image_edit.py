"""Qwen-Image-Edit and Edit-Plus: the text encoder sees the source; its tokens follow the noisy latents."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import ConditionedFamily, source_images, to_pil_images
from lorakit.models.families.family import Conditioning, ConditioningTensors
from lorakit.models.families.packing import pack_latents, unpack_latents
from lorakit.models.families.qwen_image import QwenImage
from lorakit.models.families.specs import ConditioningSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image


class QwenImageEdit(ConditionedFamily, QwenImage):
    """Wu et al. 2025, https://arxiv.org/abs/2508.02324."""

    name = "qwen-image-edit"
    title = "Qwen-Image-Edit"
    pipelines = ("QwenImageEditPipeline",)
    conditioning = ConditioningSpec(accepted=("source",), required=("source",), read_by_text_encoder=True)

    def encode_text(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        images: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Encode instructions about `images["source"]`."""
        import torch

        sources, conds = self._text_encoder_images(pipe, source_images(images)), []
        with torch.no_grad(), self._with_denoiser_config(pipe):
            for caption in captions:
                embeds, _ = pipe.encode_prompt([caption], image=sources, device=pipe.text_encoder.device)
                mask = embeds.new_ones(embeds.shape[1], dtype=bool)  # one instruction has no padding
                conds.append({"prompt_embeds": embeds[0].clone(), "prompt_embeds_mask": mask})
        return conds

    def _text_encoder_images(self, pipe: Any, sources: list[Image.Image]) -> list[Image.Image]:
        """Return the sources as the text encoder gets them."""
        return sources

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy_latents.shape[2:]
        latents = [noisy_latents, *cond["source_latents"].unbind(1)]
        shapes = [(1, each.shape[2] // 2, each.shape[3] // 2) for each in latents]
        tokens = [pack_latents(each) for each in latents]
        output = self._forward_tokens(denoiser, torch.cat(tokens, dim=1), shapes, timesteps, cond)
        return unpack_latents(output[:, : tokens[0].shape[1]], height, width)

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        with fixed_source_size(pipe, settings["width"], settings["height"]):
            return super()._call_pipeline(pipe, cond, negative_cond, settings)


class QwenImageEditPlus(QwenImageEdit):
    """Wu et al. 2025, https://arxiv.org/abs/2508.02324; the releases 2509 and 2511."""

    name = "qwen-image-edit-plus"
    title = "Qwen-Image-Edit-Plus"
    pipelines = ("QwenImageEditPlusPipeline",)
    # the pipeline samples one image at a time
    conditioning = replace(QwenImageEdit.conditioning, multiple_sources=True, one_prompt_per_call=True)

    def _text_encoder_images(self, pipe: Any, sources: list[Image.Image]) -> list[Image.Image]:
        module = sys.modules[type(pipe).__module__]
        area = module.CONDITION_IMAGE_SIZE
        sizes = [module.calculate_dimensions(area, source.width / source.height) for source in sources]
        pairs = zip(sources, sizes, strict=True)
        return [pipe.image_processor.resize(source, height, width) for source, (width, height) in pairs]

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"image": to_pil_images(images["source"][0])}


@contextlib.contextmanager
def fixed_source_size(pipe: Any, width: int, height: int) -> Iterator[None]:
    """Make the pipeline resize sources to this size, as in training, and not to a megapixel."""
    module = sys.modules[type(pipe).__module__]
    size = (width, height, None)[: len(module.calculate_dimensions(1, 1.0))]
    original = module.calculate_dimensions
    module.calculate_dimensions = lambda area, ratio: size  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.calculate_dimensions = original  # type: ignore[attr-defined]
