"""One row of the contract table: all that a family needs to be held to its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

Tensor = torch.Tensor


def as_it_is(pipe: Any, value: Tensor) -> Tensor:
    """Most pipelines draw noise, and predict, in the shape of the latents."""
    return value


def as_pictures(pictures: Tensor) -> list[Image.Image]:
    """(N, channels, H, W) as pipelines take them."""
    arrays = [picture.permute(1, 2, 0).squeeze(2).numpy() for picture in pictures]
    return [Image.fromarray(array) for array in arrays]


def painted(pictures: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of inpainting pipelines."""
    return {
        "image": as_pictures(pictures["source"]),
        "mask_image": as_pictures(pictures["mask"]),
        "strength": 1.0,
    }


@dataclass(frozen=True)
class Full:
    """The published network, built without memory: what the default adapter comes to on it."""

    kind: str
    modules: int
    millions: float
    """Numbers in an adapter of rank 16, to one decimal."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from the defaults of the class in diffusers."""


@dataclass(frozen=True)
class Row:
    """A tiny pipeline and where it differs from the usual."""

    build: Callable[[], Any]
    modules: int
    """Adapted modules, counted by hand from the configuration."""
    dead: str | None = None
    """Regular expression for adapter parameters that can have no gradient; the row says why."""
    sizes: tuple[tuple[int, int], ...] = ((64, 32), (32, 48))
    """Two shapes, (width, height) in pixels."""
    call: dict[str, Any] = field(default_factory=dict)
    """Arguments of every call of the pipeline, such as a prompt rewriter switched off."""
    off: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    """Arguments that switch guidance off; the oracle's call."""
    on: dict[str, Any] | None = field(default_factory=lambda: {"guidance_scale": 4.0})
    """Arguments that guide, as `sample(guidance=4.0)` does; None where the model cannot be guided."""
    drawn: Callable[[Any, Tensor], Tensor] = as_it_is
    """(pipe, noise (B, C, H, W)) -> what the pipeline's own draw would have to be."""
    given: Callable[[Any, Tensor], Tensor] = as_it_is
    """(pipe, noise (B, C, H, W)) -> what the pipeline takes as `latents=`."""
    unpacked: Callable[[Any, Tensor, Tensor], Tensor] = lambda pipe, output, noise: output
    """(pipe, what its scheduler was handed, noise) -> the prediction (B, C, H, W)."""
    attention: str = r"\.attn[12]?\."
    """Regular expression for the linear layers of attention, all of which the targets must reach."""
    clock: Callable[[Any, Tensor, Tensor], Tensor] = lambda pipe, t, noise: t
    """(pipe, noise level * 1000, noise) -> the time that the pipeline shows its model at that level."""
    unsaved: tuple[str, ...] = ()
    """Attributes that the builder sets on the pipeline and that no file keeps."""
    alone: bool = False
    """The pipeline mixes captions of different lengths up: tests call it with one at a time."""
    shown: Callable[[dict[str, Tensor]], dict[str, Any]] | None = None
    """(pictures of one sample, as `Family.encode` takes them) -> the arguments by which its pipeline gets
    them; None for text to image."""
    full: Full | None = None
    """The published network, in one row of each size that people train."""
    draw: Callable[..., Any] = lambda pipe, **settings: pipe(**settings)[0]
    """Calls the pipeline with text: (pipe, prompt=list, latents=given, ...) -> pictures."""
    predict: Callable[..., Tensor] | None = None
    """(pipe, caption, noise, t, width, height) -> prediction, for what is no ordinary pipeline."""


def still(pipe: Any, **settings: Any) -> Any:
    """Calls a pipeline of clips for one frame: (B, C, F, H, W) of tensors, the frame itself of pictures."""
    made = pipe(**{"output_type": "pil"} | settings)[0]
    return made.transpose(1, 2) if isinstance(made, Tensor) else [film[0] for film in made]


def packed(pipe: Any, noise: Tensor) -> Tensor:
    """2 x 2 patches as tokens (B, N, 4C), written as Flux.1 does it, for pipelines that take them so."""
    b, c, h, w = noise.shape
    return noise.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def from_packed(pipe: Any, output: Tensor, noise: Tensor) -> Tensor:
    """The way back from `packed`."""
    b, c, h, w = noise.shape
    return output.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def shifted_clock(pipe: Any, t: Tensor, noise: Tensor) -> Tensor:
    """CogView4's scheduler shifts noise levels by resolution, but not the times that go with them."""
    config, tokens = pipe.scheduler.config, noise[0, 0].numel() // pipe.transformer.config.patch_size**2
    mu = (tokens / config.base_image_seq_len) ** 0.5 * config.max_shift + config.base_shift
    low, high = 0.0, 1.0
    for _ in range(60):  # the scheduler's own shift, turned round by halving
        middle = (low + high) / 2
        low, high = (middle, high) if pipe.scheduler.time_shift(mu, 1.0, middle) < t / 1000 else (low, middle)
    return torch.tensor(low * 1000)
