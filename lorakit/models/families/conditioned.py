"""Families whose network sees pictures besides the text: what is edited, what controls, where it paints.

`condition` turns pictures into latents once, for the cache; `predict` joins them to the noise as tokens or
as channels. While samples are drawn the pipeline is handed the pictures themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning, ConditioningTensors, Family

if TYPE_CHECKING:
    import torch
    from PIL import Image

CONDITIONING_KINDS = ("source", "control", "mask")
LATENTS_SUFFIX = "_latents"


class ConditionedFamily(Family):
    """Predicts from text and pictures."""

    alone: ClassVar[bool] = False
    """Whether the pipeline would show one picture's source to all pictures of a batch."""

    def condition(self, pipe: Any, pictures: ConditioningTensors) -> Conditioning:
        """Latents (N, C, h, w) of each kind of picture, as `source_latents` and so on."""
        import torch

        with torch.no_grad():
            return {
                kind + LATENTS_SUFFIX: self._latents(pipe, kind, pictures)
                for kind in self.takes
                if kind in pictures
            }

    def _latents(self, pipe: Any, kind: str, pictures: ConditioningTensors) -> torch.Tensor:
        """The latents of one kind; all else in `pictures` may be looked at."""
        return self._encode_pixels(pipe, _scaled(pictures[kind]))

    def _encode_pixels(self, pipe: Any, pixels: torch.Tensor) -> torch.Tensor:
        """The autoencoder's mean of (N, 3, H, W) in [-1, 1], in the denoiser's units."""
        from lorakit.models import vae

        return vae.encode_latents(pipe.vae, pixels.to(pipe.vae.device, pipe.vae.dtype))[0]

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        if not self.alone or len(noise) == 1:
            return super().sample(pipe, cond, negative, noise, **options)
        drawn = []
        for row in range(len(noise)):
            own, against = _row(cond, row), None if negative is None else _row(negative, row)
            drawn += super().sample(pipe, own, against, noise[row : row + 1], **options)
        return drawn

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        shown = {kind: cond[kind] for kind in CONDITIONING_KINDS if kind in cond}
        return super()._run(pipe, cond, negative, {**settings, **self._show(shown, settings)})

    def _show(self, pictures: ConditioningTensors, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments for pictures (B, N, channels, H, W); `settings` are its others."""
        return {"image": first_pil_images(pictures["source"])}

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        text = {
            k: v for k, v in cond.items() if k not in CONDITIONING_KINDS and not k.endswith(LATENTS_SUFFIX)
        }
        return super()._arguments(pipe, text)


def first_pil_images(pictures: torch.Tensor) -> list[Image.Image]:
    """The first picture of each row of (B, N, channels, H, W), for a pipeline."""
    return [picture for row in pictures for picture in to_pil_images(row[:1])]


def to_pil_images(pictures: torch.Tensor) -> list[Image.Image]:
    """(N, channels, H, W) as pictures, RGB or of one channel."""
    from PIL import Image

    arrays = pictures.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]) for array in arrays]


def _scaled(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def _row(cond: Conditioning, row: int) -> Conditioning:
    return {name: value if len(value) == 1 else value[row : row + 1] for name, value in cond.items()}


class InpaintingFamily(ConditionedFamily):
    """The network is told where to paint, and what lies around; both as channels."""

    takes = ("source", "mask")
    needs = ("mask",)
    fills = True

    def _settle(self, pipe: Any) -> None:
        super()._settle(pipe)
        inputs, latents = (self._config(pipe, part)[1] for part in (self.component, "vae"))
        if self.component == "unet" and inputs["in_channels"] != 2 * latents["latent_channels"] + 1:
            raise ConfigError(
                f"the U-Net takes {inputs['in_channels']} channels: it was never taught to be shown a mask",
                where=str(pipe.lorakit_folder),
                remedy="use a base made for inpainting",
            )

    def condition(self, pipe: Any, pictures: ConditioningTensors) -> Conditioning:
        """`mask_latents` and `around_latents`, the picture without what the mask covers, (1, C, h, w)."""
        import torch

        mask = (pictures["mask"] >= 128).float()
        with torch.no_grad():
            around = self._encode_pixels(pipe, _scaled(pictures["source"]) * (1 - mask))
        step = mask.shape[-1] // around.shape[-1]
        return {"mask" + LATENTS_SUFFIX: self._mask(mask, step), "around" + LATENTS_SUFFIX: around}

    def _mask(self, mask: torch.Tensor, step: int) -> torch.Tensor:
        """(N, 1, H, W) of 0 and 1 as channels at the size of the latents, `step` pixels a side each."""
        import torch

        small = [side // step for side in mask.shape[2:]]
        return torch.nn.functional.interpolate(mask, size=small)  # nearest, as the pipelines do

    def _channels(self, noisy: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Noise, mask and surroundings (B, C, h, w), in the order of Stable Diffusion."""
        import torch

        return torch.cat(
            [noisy, cond["mask" + LATENTS_SUFFIX][:, 0], cond["around" + LATENTS_SUFFIX][:, 0]], dim=1
        )

    def _show(self, pictures: ConditioningTensors, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "image": first_pil_images(pictures["source"]),
            "mask_image": first_pil_images(pictures["mask"]),
            "strength": 1.0,
        }
