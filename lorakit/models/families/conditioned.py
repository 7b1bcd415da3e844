"""Families whose network takes conditioning images besides the text: sources, controls, masks.

`encode_conditioning` turns images into latents once, for the cache; `predict` joins them to the noisy latents
as tokens or as channels. For sampling, the pipeline gets the images themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning, ConditioningTensors, Family
from lorakit.models.families.specs import ConditioningSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image

T = TypeVar("T")
CONDITIONING_KINDS = ("source", "control", "mask")
LATENTS_SUFFIX = "_latents"


class ConditionedFamily(Family):
    """A family that predicts from text and conditioning images."""

    def encode_conditioning(self, pipe: Any, images: ConditioningTensors, frames: int = 1) -> Conditioning:
        """Encode each kind of conditioning image: `source_latents` (N, C, h, w) and so on."""
        import torch

        with torch.no_grad():
            return {
                kind + LATENTS_SUFFIX: self._encode_kind(pipe, kind, images)
                for kind in self.conditioning.accepted
                if kind in images
            }

    def _encode_kind(self, pipe: Any, kind: str, images: ConditioningTensors) -> torch.Tensor:
        """Return the latents of one kind of image; they may depend on the other `images`."""
        return self._encode_pixels(pipe, scale_pixels(images[kind]))

    def _encode_pixels(self, pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Return the VAE's mean of (N, 3, H, W) in [-1, 1], as normalized latents (N, C, h, w)."""
        from lorakit.models import vae

        return vae.encode_latents(pipe.vae, pixels.to(pipe.vae.device, pipe.vae.dtype)).mean

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        return self._sample_rows(super().sample, pipe, cond, negative_cond, noise, **options)

    def _sample_rows(
        self,
        sample: Callable[..., list[T]],
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[T]:
        """Sample all rows at once, or each in its own call where the pipeline takes one prompt's images."""
        if not self.conditioning.one_prompt_per_call or len(noise) == 1:
            return sample(pipe, cond, negative_cond, noise, **options)
        samples: list[T] = []
        for row in range(len(noise)):
            negative = None if negative_cond is None else _select_row(negative_cond, row)
            samples += sample(pipe, _select_row(cond, row), negative, noise[row : row + 1], **options)
        return samples

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        images = {kind: cond[kind] for kind in CONDITIONING_KINDS if kind in cond}
        arguments = {**settings, **self._conditioning_arguments(images, settings)}
        return super()._call_pipeline(pipe, cond, negative_cond, arguments)

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the pipeline's arguments for images (B, N, channels, H, W); `settings` are its others."""
        return {"image": first_pil_images(images["source"])}

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        text = {
            k: v for k, v in cond.items() if k not in CONDITIONING_KINDS and not k.endswith(LATENTS_SUFFIX)
        }
        return super()._text_arguments(pipe, text)


def first_pil_images(images: torch.Tensor) -> list[Image.Image]:
    """Convert the first image of each row of (B, N, channels, H, W), for a pipeline."""
    return [image for row in images for image in to_pil_images(row[:1])]


def source_images(images: ConditioningTensors | None) -> list[Image.Image]:
    """Return the sources that a text encoder reads with an instruction; ValueError without any."""
    if images is None:
        raise ValueError("this text encoder needs the source with the instruction: pass `images`")
    return to_pil_images(images["source"])


def to_pil_images(images: torch.Tensor) -> list[Image.Image]:
    """Convert (N, channels, H, W), RGB or of one channel."""
    from PIL import Image

    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]) for array in arrays]


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Scale 0..255 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _select_row(cond: Conditioning, row: int) -> Conditioning:
    return {name: value if len(value) == 1 else value[row : row + 1] for name, value in cond.items()}


class InpaintingFamily(ConditionedFamily):
    """A family whose network takes a mask and the image outside it, both as channels."""

    conditioning = ConditioningSpec(accepted=("source", "mask"), required=("mask",), source_is_image=True)

    def _configure_pipeline(self, pipe: Any) -> None:
        super()._configure_pipeline(pipe)
        if self.components.denoiser != "unet":
            return
        channels = self._component_config(pipe, "unet").config["in_channels"]
        if channels != 2 * self._component_config(pipe, "vae").config["latent_channels"] + 1:
            raise ConfigError(
                f"the U-Net has {channels} input channels: it was not trained with a mask",
                where=str(pipe.lorakit_folder),
                remedy="use a base model for inpainting",
            )

    def encode_conditioning(self, pipe: Any, images: ConditioningTensors, frames: int = 1) -> Conditioning:
        """Encode `mask_latents`, and `masked_image_latents` of the image outside the mask, (1, C, h, w)."""
        import torch

        mask = (images["mask"] >= 128).float()
        with torch.no_grad():
            masked_image_latents = self._encode_pixels(pipe, scale_pixels(images["source"]) * (1 - mask))
        compression = mask.shape[-1] // masked_image_latents.shape[-1]
        return {
            "mask_latents": self._mask_channels(mask, compression),
            "masked_image_latents": masked_image_latents,
        }

    def _mask_channels(self, mask: torch.Tensor, compression: int) -> torch.Tensor:
        """Resize (N, 1, H, W) of 0 and 1 to the latents, each of which covers `compression` pixels a side."""
        import torch

        size = [side // compression for side in mask.shape[2:]]
        return torch.nn.functional.interpolate(mask, size=size)  # nearest, as in the pipelines

    def _join_channels(self, noisy_latents: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Join noisy latents, mask and masked image (B, C, h, w) in the order of Stable Diffusion."""
        import torch

        channels = [noisy_latents, cond["mask_latents"][:, 0], cond["masked_image_latents"][:, 0]]
        return torch.cat(channels, dim=1)

    def _conditioning_arguments(
        self, images: ConditioningTensors, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {
            "image": first_pil_images(images["source"]),
            "mask_image": first_pil_images(images["mask"]),
            "strength": 1.0,
        }
