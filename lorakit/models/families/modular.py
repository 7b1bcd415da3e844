"""Families that are published as modular blocks instead of a pipeline class with one call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    from PIL import Image


class ModularFamily(Family):
    """A family that samples with the published blocks after the text encoder; their guider has the scale."""

    @abstractmethod
    def _sampling_blocks(self) -> Any:
        """Return the published blocks that sample from text embeddings."""

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        from diffusers import ClassifierFreeGuidance

        sampler, scale = self._sampling_blocks().init_pipeline(), settings["guidance_scale"]
        for name in sampler.component_names:
            if name != "guider":
                setattr(sampler, name, getattr(pipe, name))
        sampler.guider = ClassifierFreeGuidance(guidance_scale=scale, enabled=scale > self.call.guidance_off)
        sampler.set_progress_bar_config(disable=True)
        texts = self._text_arguments(pipe, cond)
        if negative_cond is not None:
            negative = self._text_arguments(pipe, negative_cond)
            texts |= {f"negative_{name}": value for name, value in negative.items()}
        options = {name: value for name, value in settings.items() if name != "guidance_scale"}
        images: list[Image.Image] = sampler(**texts, **options, output="images")
        return images

    def resolve_guidance(self, pipe: Any, guidance_scale: float | None) -> float:
        """Return the guidance scale of a call: the given one, or without one the guider's."""
        scale = pipe.guider.guidance_scale if guidance_scale is None else guidance_scale
        return float(scale)

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        return scale > self.call.guidance_off
