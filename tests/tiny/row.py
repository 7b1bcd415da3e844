"""One row of the contract table: everything that the tests need to compare a family with its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

Tensor = torch.Tensor


def unchanged(pipe: Any, value: Tensor) -> Tensor:
    """Return noise and latents unchanged: most pipelines use the shape of the latents."""
    return value


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """Convert (N, channels, H, W) for pipelines."""
    arrays = [image.permute(1, 2, 0).squeeze(2).numpy() for image in images]
    return [Image.fromarray(array) for array in arrays]


def inpainting_arguments(images: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of inpainting pipelines."""
    return {
        "image": to_pil_images(images["source"]),
        "mask_image": to_pil_images(images["mask"]),
        "strength": 1.0,
    }


@dataclass(frozen=True)
class FullNetwork:
    """The published network, built without memory, and the size of the default adapter for it."""

    class_name: str
    modules: int
    millions_of_parameters: float
    """Of an adapter of rank 16, to one decimal."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the defaults of the class in diffusers."""


@dataclass(frozen=True)
class Row:
    """A tiny pipeline and its differences from the common case."""

    build: Callable[[], Any]
    modules: int
    """Number of adapted modules, counted by hand from the configuration."""
    no_gradient: str | None = None
    """Regular expression for adapter parameters without a gradient; a comment of the row says why."""
    sizes: tuple[tuple[int, int], ...] = ((64, 32), (32, 48))
    """Two image sizes, (width, height) in pixels."""
    call_arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments of every call of the pipeline, such as a prompt rewriter switched off."""
    guidance_off: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    """Arguments that switch guidance off, as in the oracle's call."""
    guidance_on: dict[str, Any] | None = field(default_factory=lambda: {"guidance_scale": 4.0})
    """Arguments equal to `sample(guidance_scale=4.0)`; None for models without guidance."""
    initial_noise: Callable[[Any, Tensor], Tensor] = unchanged
    """(pipe, noise (B, C, H, W)) -> the noise in the shape that the pipeline samples itself."""
    latents_argument: Callable[[Any, Tensor], Tensor] = unchanged
    """(pipe, noise (B, C, H, W)) -> the pipeline's argument `latents`."""
    unpack_prediction: Callable[[Any, Tensor, Tensor], Tensor] = lambda pipe, output, noise: output
    """(pipe, input of its scheduler, noise) -> the prediction (B, C, H, W)."""
    attention_layers: str = r"\.attn[12]?\."
    """Regular expression for the linear layers of attention, all of which must be target modules."""
    timestep: Callable[[Any, Tensor, Tensor], Tensor] = lambda pipe, t, noise: t
    """(pipe, sigma * 1000, noise) -> the timestep that the pipeline gives its network at that sigma."""
    unsaved_attributes: tuple[str, ...] = ()
    """Attributes that the builder sets on the pipeline and that no file stores."""
    one_prompt_per_call: bool = False
    """True if the pipeline confuses captions of different lengths: the tests call it with one at a time."""
    image_arguments: Callable[[dict[str, Tensor]], dict[str, Any]] | None = None
    """(conditioning images of one sample, as for `Family.encode_conditioning`) -> arguments of the pipeline;
    None for text to image."""
    full: FullNetwork | None = None
    """The published network, in one row of each size that people train."""
    sample: Callable[..., Any] = lambda pipe, **settings: pipe(**settings)[0]
    """Calls the pipeline with text: (pipe, prompt=list, latents=..., ...) -> images."""
    predict: Callable[..., Tensor] | None = None
    """(pipe, caption, noise, t, width, height) -> prediction, for unusual pipelines."""


def sample_still(pipe: Any, **settings: Any) -> Any:
    """Call a video pipeline for one frame: returns (B, C, F, H, W) for tensors, the frame for PIL images."""
    output = pipe(**{"output_type": "pil"} | settings)[0]
    return output.transpose(1, 2) if isinstance(output, Tensor) else [frames[0] for frames in output]


def packed(pipe: Any, noise: Tensor) -> Tensor:
    """Pack 2 x 2 patches as tokens (B, N, 4C), written as in Flux.1, for pipelines that use them."""
    b, c, h, w = noise.shape
    return noise.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def from_packed(pipe: Any, output: Tensor, noise: Tensor) -> Tensor:
    """Undo `packed`."""
    b, c, h, w = noise.shape
    return output.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def unshifted_timestep(pipe: Any, t: Tensor, noise: Tensor) -> Tensor:
    """Invert the shift of CogView4's scheduler, which applies to sigmas but not to timesteps."""
    config, tokens = pipe.scheduler.config, noise[0, 0].numel() // pipe.transformer.config.patch_size**2
    mu = (tokens / config.base_image_seq_len) ** 0.5 * config.max_shift + config.base_shift
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection of the scheduler's own shift
        middle = (low + high) / 2
        low, high = (middle, high) if pipe.scheduler.time_shift(mu, 1.0, middle) < t / 1000 else (low, middle)
    return torch.tensor(low * 1000)
