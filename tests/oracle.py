"""The pipeline as oracle: what it hands to its own scheduler for a chosen noise, time and caption."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from tests import tiny


class Caught(Exception):
    """Carries the model's output out of the pipeline's loop."""


class OneStep:
    """A scheduler of one step at a chosen time: it stops at the prediction, or passes latents through."""

    order = 1
    init_noise_sigma = 1.0
    num_inference_steps = 1

    def __init__(self, real: Any, t: torch.Tensor, *, stop: bool) -> None:
        self.config, self.timesteps, self.stop = real.config, t[None], stop
        self.sigmas = torch.stack([t / 1000, torch.zeros(())])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        timesteps: Any = None,
    ) -> None:
        """The time is fixed."""

    def set_begin_index(self, index: int) -> None:
        """There is only one."""

    def set_shift(self, shift: float) -> None:
        """It would move the times."""

    def scale_model_input(self, sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sample

    def scale_noise(self, sample: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise if self.stop else sample  # a pipeline that paints into a picture starts from noise alone

    def add_noise(self, sample: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sample

    def step(self, model_output: torch.Tensor, t: Any, sample: torch.Tensor, **options: Any) -> Any:
        if self.stop:
            raise Caught(model_output)
        return SchedulerOutput(sample)  # read as a tuple, or by name


@contextlib.contextmanager
def plain(pipe: Any, size: tuple[int, int]) -> Iterator[None]:
    """While inside, the pipeline takes the mean of what its autoencoder gives, as training does, and pictures
    that it is shown at `size` pixels where it would bring them to a megapixel."""
    module, kind = sys.modules[type(pipe).__module__], DiagonalGaussianDistribution
    own = getattr(module, "calculate_dimensions", None)

    def dimensions(area: int, ratio: float) -> tuple[int | None, ...]:
        real = own(area, ratio)
        return (*size, None)[: len(real)] if area == 1024**2 else real

    with contextlib.ExitStack() as changes:
        changes.enter_context(mock.patch.object(kind, "sample", lambda self, generator=None: self.mode()))
        if own is not None:
            changes.enter_context(mock.patch.object(module, "calculate_dimensions", dimensions))
        yield


def prediction(
    name: str,
    pipe: Any,
    caption: str,
    noise: torch.Tensor,
    t: torch.Tensor,
    width: int,
    height: int,
    pictures: dict[str, torch.Tensor] | None = None,
    **more: Any,
) -> torch.Tensor:
    """The pipeline's own prediction (1, C, H, W) for one caption, with `noise` for what it would draw; `more`
    are further arguments of its call."""
    row = tiny.ROWS[name]
    if row.predict is not None:
        return row.predict(pipe, caption, noise, t, width, height, **more)
    # without its no_grad decorator, so that gradients can be had too
    call = inspect.unwrap(type(pipe).__call__)
    drawn, asked = row.drawn(pipe, noise), []

    def randn_tensor(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        asked.append(tuple(shape))
        return drawn

    settings = row.call | row.off | {"width": width, "height": height, "num_inference_steps": 1} | more
    settings |= row.shown(pictures) if row.shown and pictures else {}
    module = sys.modules[type(pipe).__module__]
    stub = OneStep(pipe.scheduler, row.clock(pipe, t, noise), stop=True)
    drawing = mock.patch.object(module, "randn_tensor", randn_tensor)
    with drawing, mock.patch.object(pipe, "scheduler", stub), plain(pipe, (width, height)):
        try:
            call(pipe, prompt=caption, **settings)
        except Caught as caught:
            output = caught.args[0]
        else:
            raise AssertionError("the pipeline never reached its scheduler")
    assert asked == [tuple(drawn.shape)], f"the pipeline draws {asked}, the row says {tuple(drawn.shape)}"
    return row.unpacked(pipe, output, noise)


def decoded(
    name: str,
    pipe: Any,
    latents: torch.Tensor,
    width: int,
    height: int,
    pictures: Sequence[dict[str, torch.Tensor]] = (),
    **more: Any,
) -> torch.Tensor:
    """The pipeline's own picture (B, 3, H, W) in [0, 1] of final latents (B, C, H, W)."""
    row = tiny.ROWS[name]
    stub = OneStep(pipe.scheduler, torch.tensor(1.0), stop=False)
    settings = row.call | row.off | {"width": width, "height": height, "num_inference_steps": 1}
    with mock.patch.object(pipe, "scheduler", stub), plain(pipe, (width, height)):
        return torch.cat(
            [
                row.draw(
                    pipe,
                    prompt=["a red circle"] * len(some),
                    latents=row.given(pipe, some),
                    output_type="pt",
                    **settings | shown | more,
                )
                for some, shown in _shown(row, latents, pictures)
            ]
        )


def _shown(row: Any, latents: torch.Tensor, pictures: Any) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """All at once, or, where each has pictures, one after the other."""
    if row.shown is None:
        return [(latents, {})]
    return [(latents[i : i + 1], row.shown(one)) for i, one in enumerate(pictures)]
