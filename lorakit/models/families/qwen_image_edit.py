"""Qwen-Image-Edit and Edit-Plus: the source is read with the instruction; its tokens follow the noise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit.models.families.conditioned import ConditionedFamily, to_pil_images
from lorakit.models.families.family import Conditioning, ConditioningTensors
from lorakit.models.families.packing import pack_latents, unpack_latents
from lorakit.models.families.qwen_image import QwenImage

if TYPE_CHECKING:
    import torch
    from PIL import Image


class QwenImageEdit(ConditionedFamily, QwenImage):
    """Wu et al. 2025, https://arxiv.org/abs/2508.02324."""

    name = "qwen-image-edit"
    title = "Qwen-Image-Edit"
    pipelines = ("QwenImageEditPipeline",)
    takes = needs = ("source",)
    reads = True

    def encode(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        pictures: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Instructions about `pictures["source"]`."""
        import torch

        if pictures is None:
            raise ValueError("this text encoder reads the source with the instruction: give `pictures`")
        shown, found = self._read(pipe, to_pil_images(pictures["source"])), []
        with torch.no_grad(), self._described(pipe):
            for caption in captions:
                embeds, _ = pipe.encode_prompt([caption], image=shown, device=pipe.text_encoder.device)
                mask = embeds.new_ones(embeds.shape[1], dtype=bool)  # one instruction has no padding
                found.append({"prompt_embeds": embeds[0].clone(), "prompt_embeds_mask": mask})
        return found

    def _read(self, pipe: Any, sources: list[Image.Image]) -> list[Image.Image]:
        """The sources as the text encoder sees them."""
        return sources

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        height, width = noisy.shape[2:]
        pictures = [noisy, *cond["source_latents"].unbind(1)]
        shapes = [(1, picture.shape[2] // 2, picture.shape[3] // 2) for picture in pictures]
        tokens = [pack_latents(picture) for picture in pictures]
        output = self._tokens(denoiser, torch.cat(tokens, dim=1), shapes, t, cond)
        return unpack_latents(output[:, : tokens[0].shape[1]], height, width)

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        with _fixed_source_size(pipe, settings["width"], settings["height"]):
            return super()._run(pipe, cond, negative, settings)


class QwenImageEditPlus(QwenImageEdit):
    """Wu et al. 2025, https://arxiv.org/abs/2508.02324; the releases 2509 and 2511."""

    name = "qwen-image-edit-plus"
    title = "Qwen-Image-Edit-Plus"
    pipelines = ("QwenImageEditPlusPipeline",)
    several = True
    alone = True  # the pipeline draws one picture at a time

    def _read(self, pipe: Any, sources: list[Image.Image]) -> list[Image.Image]:
        module = sys.modules[type(pipe).__module__]
        area = module.CONDITION_IMAGE_SIZE
        sizes = [module.calculate_dimensions(area, one.width / one.height) for one in sources]
        pairs = zip(sources, sizes, strict=True)
        return [pipe.image_processor.resize(one, height, width) for one, (width, height) in pairs]

    def _show(self, pictures: ConditioningTensors, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"image": to_pil_images(pictures["source"][0])}


@contextlib.contextmanager
def _fixed_source_size(pipe: Any, width: int, height: int) -> Iterator[None]:
    """While inside, the pipeline brings sources to this size, as training did, instead of to a megapixel."""
    module = sys.modules[type(pipe).__module__]
    size = (width, height, None)[: len(module.calculate_dimensions(1, 1.0))]
    own = module.calculate_dimensions
    module.calculate_dimensions = lambda area, ratio: size  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.calculate_dimensions = own  # type: ignore[attr-defined]
