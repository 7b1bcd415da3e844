"""The pipeline as oracle: the input of its own scheduler for a given noise, timestep and caption."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from tests import tiny


class Caught(Exception):
    """Carries the model's output out of the pipeline's loop."""


class OneStep:
    """A scheduler of one step at a given timestep: it stops at the prediction, or keeps the latents."""

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
        """Ignore all: the timestep is fixed."""

    def set_begin_index(self, index: int) -> None:
        """Ignore it: there is only one."""

    def set_shift(self, shift: float) -> None:
        """Ignore it: it would change the timestep."""

    def scale_model_input(self, sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sample

    def scale_noise(self, sample: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise if self.stop else sample  # inpainting starts from pure noise

    def add_noise(self, sample: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sample

    def step(self, model_output: torch.Tensor, t: Any, sample: torch.Tensor, **options: Any) -> Any:
        if self.stop:
            raise Caught(model_output)
        # pipelines use it as a tuple, or by name; of one step, some use the predicted image
        return DDIMSchedulerOutput(sample, sample)


@contextlib.contextmanager
def deterministic_inputs(pipe: Any, size: tuple[int, int]) -> Iterator[None]:
    """Make the pipeline use the mean of its VAE, as training does, and conditioning images of `size` pixels
    where it would resize them to a megapixel."""
    module = sys.modules[type(pipe).__module__]
    original = getattr(module, "calculate_dimensions", None)

    def dimensions(area: int, ratio: float) -> tuple[int | None, ...]:
        result = original(area, ratio)
        return (*size, None)[: len(result)] if area == 1024**2 else result

    def mode(self: DiagonalGaussianDistribution, generator: Any = None) -> torch.Tensor:
        return self.mode()

    with contextlib.ExitStack() as changes:
        changes.enter_context(mock.patch.object(DiagonalGaussianDistribution, "sample", mode))
        if original is not None:
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
    images: dict[str, torch.Tensor] | None = None,
    **more: Any,
) -> torch.Tensor:
    """Return the pipeline's own prediction (1, C, H, W) for one caption, from `noise` instead of its own.

    `images` are conditioning images, `more` further arguments of its call.
    """
    row = tiny.ROWS[name]
    if row.predict is not None:
        return row.predict(pipe, caption, noise, t, width, height, **more)
    # without its no_grad decorator, so that there are gradients too
    call = inspect.unwrap(type(pipe).__call__)
    initial_noise, shapes = row.initial_noise(pipe, noise), []

    def randn_tensor(shape: Any, *_: Any, **__: Any) -> torch.Tensor:
        shapes.append(tuple(shape))
        return initial_noise

    settings = row.call_arguments | row.guidance_off
    settings |= {"width": width, "height": height, "num_inference_steps": 1} | more
    settings |= row.image_arguments(images) if row.image_arguments and images else {}
    accepted = inspect.signature(call).parameters  # some take their size from the source
    settings = {name: value for name, value in settings.items() if name in accepted}
    module = sys.modules[type(pipe).__module__]
    stub = OneStep(pipe.scheduler, row.timestep(pipe, t, noise), stop=True)
    fixed_noise = mock.patch.object(module, "randn_tensor", randn_tensor)
    fixed_step = mock.patch.object(pipe, "scheduler", stub)
    with fixed_noise, fixed_step, deterministic_inputs(pipe, (width, height)):
        try:
            call(pipe, prompt=caption, **settings)
        except Caught as caught:
            output = caught.args[0]
        else:
            raise AssertionError("the pipeline never reached its scheduler")
    expected = tuple(initial_noise.shape)
    assert shapes == [expected], f"the pipeline samples noise of {shapes}, the row says {expected}"
    return row.unpack_prediction(pipe, output, noise)


def decoded(
    name: str,
    pipe: Any,
    latents: torch.Tensor,
    width: int,
    height: int,
    images: Sequence[dict[str, torch.Tensor]] = (),
    **more: Any,
) -> torch.Tensor:
    """Return the pipeline's own images (B, 3, H, W) in [0, 1] of final latents (B, C, H, W)."""
    row = tiny.ROWS[name]
    stub = OneStep(pipe.scheduler, torch.tensor(1.0), stop=False)
    settings = row.call_arguments | row.guidance_off
    settings |= {"width": width, "height": height, "num_inference_steps": 1, "output_type": "pt"}
    outputs = []
    with mock.patch.object(pipe, "scheduler", stub), deterministic_inputs(pipe, (width, height)):
        for some, arguments in _batches(row, latents, images):
            settings["latents"] = row.latents_argument(pipe, some)
            outputs.append(
                row.sample(pipe, prompt=["a red circle"] * len(some), **settings | arguments | more)
            )
    return torch.cat(outputs)


def _batches(row: Any, latents: torch.Tensor, images: Any) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """One batch, or one for each sample that has conditioning images."""
    if row.image_arguments is None:
        return [(latents, {})]
    return [(latents[i : i + 1], row.image_arguments(inputs)) for i, inputs in enumerate(images)]
