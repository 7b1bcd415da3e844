"""The pipeline as oracle: what it hands to its own scheduler for a chosen noise, time and caption."""

from __future__ import annotations

import inspect
import sys
from typing import Any
from unittest import mock

import torch


class Caught(Exception):
    """Carries the model's output out of the pipeline's loop."""


class OneStep:
    """A scheduler of one step at a chosen time: it stops at the prediction, or passes latents through."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, real: Any, t: torch.Tensor, *, stop: bool) -> None:
        self.config, self.timesteps, self.stop = real.config, t[None], stop

    def set_timesteps(
        self, steps: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        """The time is fixed."""

    def set_begin_index(self, index: int) -> None:
        """There is only one."""

    def scale_model_input(self, sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sample

    def scale_noise(self, sample: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return sample

    def add_noise(self, sample: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return sample

    def step(self, model_output: torch.Tensor, t: Any, sample: torch.Tensor, return_dict: bool = True) -> Any:
        if self.stop:
            raise Caught(model_output)
        return (sample,)


def prediction(
    pipe: Any, caption: str, noise: torch.Tensor, t: torch.Tensor, width: int, height: int
) -> torch.Tensor:
    """The pipeline's own prediction (1, C, H, W) for one caption, with `noise` for what it would draw."""
    call = inspect.unwrap(
        type(pipe).__call__
    )  # without its no_grad decorator, so that gradients can be had too
    asked: list[tuple[int, ...]] = []

    def randn_tensor(shape: Any, **_: Any) -> torch.Tensor:
        asked.append(tuple(shape))
        return noise

    module = sys.modules[type(pipe).__module__]
    stub = OneStep(pipe.scheduler, t, stop=True)
    with mock.patch.object(module, "randn_tensor", randn_tensor), mock.patch.object(pipe, "scheduler", stub):
        try:
            call(pipe, prompt=caption, width=width, height=height, guidance_scale=1.0, num_inference_steps=1)
        except Caught as caught:
            output = caught.args[0]
        else:
            raise AssertionError("the pipeline never reached its scheduler")
    assert asked == [tuple(noise.shape)], (
        f"the pipeline wants noise {asked}, the family makes {tuple(noise.shape)}"
    )
    if output.ndim == 3:
        output = pipe._unpack_latents_with_ids(output, pipe._prepare_latent_ids(noise))
    return output


def decoded(
    pipe: Any, latents: torch.Tensor, cond: dict[str, torch.Tensor], width: int, height: int
) -> torch.Tensor:
    """The pipeline's own picture (B, 3, H, W) in [0, 1] of final latents."""
    stub = OneStep(pipe.scheduler, torch.tensor(1.0), stop=False)
    with mock.patch.object(pipe, "scheduler", stub):
        return pipe(
            **cond,
            latents=latents,
            width=width,
            height=height,
            guidance_scale=1.0,
            num_inference_steps=1,
            output_type="pt",
        ).images
