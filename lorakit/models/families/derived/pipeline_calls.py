"""Controlled calls of a pipeline: with given noise, at a given timestep, up to a given point.

The scheduler and `randn_tensor` are replaced, text embeddings are recorded from `encode_prompt` or replayed
in its place, and an exception carries the arguments of the network or the scheduler out of the call.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from lorakit.core.strict_json import parse_json

_ABSENT = object()
NoiseFn = Callable[[tuple[int, ...]], torch.Tensor]
"""(shape that the pipeline requests) -> noise."""


class Intercepted(Exception):
    """Arguments that reached the point at which the call was stopped."""


class UnsupportedPipeline(Exception):
    """The pipeline does something that a derived family does not support; the message says what."""


class SingleStepScheduler:
    """A scheduler of one step at timestep `t`, or of none, that raises `Intercepted` with the prediction."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, real: Any, t: torch.Tensor | None) -> None:
        self._real = real
        self.timesteps = torch.zeros(0) if t is None else t.reshape(1)
        self.sigmas = torch.cat([self.timesteps / 1000, torch.zeros(1, device=self.timesteps.device)])
        self.num_inference_steps = len(self.timesteps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        timesteps: Any = None,
    ) -> None:
        """Ignore all: the timestep is fixed."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Ignore it: there is only one."""

    def set_shift(self, shift: float) -> None:
        """Ignore it: it would change the timestep."""

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Return the sample unchanged: training adds noise as the objective says, not as a sampler does."""
        return sample

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *_: Any, **__: Any
    ) -> Any:
        """Stop the call."""
        raise Intercepted(model_output, sample)


@contextlib.contextmanager
def patched_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Replace attributes of an object or module within the context."""
    before = {name: vars(owner).get(name, _ABSENT) for name in values}
    for name, value in values.items():
        owner.__dict__[name] = value
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = value


@contextlib.contextmanager
def fixed_noise(pipe: Any, noise_fn: NoiseFn) -> Iterator[None]:
    """Answer the pipeline's first request for noise with `noise_fn`; later ones are its own."""
    modules = {sys.modules[base.__module__] for base in type(pipe).__mro__ if base.__module__ in sys.modules}
    unused = [noise_fn]

    def replacement(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def randn_tensor(shape: Any, *arguments: Any, **options: Any) -> torch.Tensor:
            if not unused:
                return original(shape, *arguments, **options)
            return unused.pop()(tuple(shape)).to(options.get("device"), options.get("dtype"))

        return randn_tensor

    with contextlib.ExitStack() as stack:
        for module in modules:
            if hasattr(module, "randn_tensor"):
                patch = patched_attributes(module, randn_tensor=replacement(module.randn_tensor))
                stack.enter_context(patch)
        yield


def noise_in_pipeline_layout(noise: torch.Tensor) -> NoiseFn:
    """Return `noise` (1, C, H, W) in the shape that a pipeline requests: with a frame, or channels last."""
    channels, height, width = noise.shape[1:]

    def noise_fn(shape: tuple[int, ...]) -> torch.Tensor:
        sides = [side for side in shape if side != 1]
        if sides == [channels, height, width]:
            return noise.reshape(shape)
        if sides == [height, width, channels]:
            return noise.permute(0, 2, 3, 1).reshape(shape)
        raise UnsupportedPipeline(
            f"it uses noise of shape {shape} for latents of shape {tuple(noise.shape[1:])}"
        )

    return noise_fn


@contextlib.contextmanager
def intercept_denoiser(network: Any) -> Iterator[None]:
    """Make the network raise `Intercepted` with its arguments instead of computing."""

    @functools.wraps(network.forward)  # some pipelines inspect its signature
    def forward(*arguments: Any, **options: Any) -> Any:
        raise Intercepted(arguments, options)

    with patched_attributes(network, forward=forward):
        yield


@contextlib.contextmanager
def count_denoiser_calls(network: Any) -> Iterator[list[None]]:
    """Yield a list that grows by one with every call of the network."""
    calls: list[None] = []
    original = network.forward

    @functools.wraps(original)
    def forward(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return original(*arguments, **options)

    with patched_attributes(network, forward=forward):
        yield calls


def call_until_intercepted(
    pipe: Any, arguments: Mapping[str, Any], t: torch.Tensor | None, noise_fn: NoiseFn
) -> tuple[Any, ...]:
    """Call the pipeline, with gradients where they are on, at timestep `t`, or for no step if it is None.

    Returns the arguments at the point that stopped the call. Raises UnsupportedPipeline if nothing stops it.
    """
    bare = inspect.unwrap(type(pipe).__call__)  # without its no_grad
    with (
        fixed_noise(pipe, noise_fn),
        patched_attributes(pipe, scheduler=SingleStepScheduler(pipe.scheduler, t)),
    ):
        try:
            bare(pipe, **arguments)
        except Intercepted as intercepted:
            return intercepted.args
    raise UnsupportedPipeline("its call ends without a prediction")


def accepts_arguments(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Return True if a pipeline accepts these arguments, which it checks before it encodes text."""

    def encode_prompt(*_: Any, **__: Any) -> Any:
        raise Intercepted

    try:
        with patched_attributes(pipe, encode_prompt=encode_prompt):
            inspect.unwrap(type(pipe).__call__)(pipe, **arguments)
    except Intercepted:
        return True
    except ValueError:
        return False
    raise UnsupportedPipeline("its call does not use encode_prompt")


@contextlib.contextmanager
def record_encode_prompt(pipe: Any) -> Iterator[list[Any]]:
    """Yield a list that collects the outputs of `encode_prompt`, call by call."""
    outputs: list[Any] = []
    original = getattr(pipe, "encode_prompt", None)
    if original is None:
        raise UnsupportedPipeline("it has no encode_prompt")

    def encode_prompt(*arguments: Any, **options: Any) -> Any:
        outputs.append(original(*arguments, **options))
        return outputs[-1]

    with patched_attributes(pipe, encode_prompt=encode_prompt):
        yield outputs


@contextlib.contextmanager
def replay_encode_prompt(
    pipe: Any, outputs: Sequence[Any], text_networks: Sequence[str], like: torch.Tensor
) -> Iterator[None]:
    """Make `encode_prompt` return recorded `outputs`; of the text encoders only the configuration is left."""
    remaining = list(outputs)

    def encode_prompt(*_: Any, **__: Any) -> Any:
        if not remaining:
            raise UnsupportedPipeline("it encodes text more often than when it was recorded")
        return remaining.pop(0)

    stubs = {}
    for name in text_networks:
        config = getattr(getattr(pipe, name), "config", None)
        stubs[name] = SimpleNamespace(dtype=like.dtype, device=like.device, config=config)
    with patched_attributes(pipe, encode_prompt=encode_prompt, **stubs):
        yield


def flatten_nested(values: Any, name: str) -> dict[str, torch.Tensor]:
    """Flatten nested tuples and lists of tensors and values into tensors `name.0` ... and their nesting."""
    tensors: list[torch.Tensor] = []

    def structure(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value.detach().clone())
            return {"tensor": len(tensors) - 1}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [structure(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise UnsupportedPipeline(f"its encode_prompt returns a {type(value).__name__}")

    text = json.dumps(structure(values)).encode()
    nesting = torch.tensor(list(text), dtype=torch.uint8)
    return {f"{name}.nesting": nesting, **{f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}}


def restore_nested(tensors: Mapping[str, torch.Tensor], name: str) -> Any:
    """Restore the values that `flatten_nested` stored under this name."""

    def build(node: dict[str, Any]) -> Any:
        ((node_type, content),) = node.items()
        if node_type == "tensor":
            return tensors[f"{name}.{content}"]
        if node_type == "value":
            return content
        items = [build(item) for item in content]
        return tuple(items) if node_type == "tuple" else items

    return build(parse_json(bytes(tensors[f"{name}.nesting"].tolist()), name))


def nested_tensors(value: Any) -> list[torch.Tensor]:
    """Return all tensors in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in nested_tensors(item)]
    return []


def without_tensors(value: Any) -> Any:
    """Return the same nesting without its tensors: settings such as sizes."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, Mapping):
        return {name: without_tensors(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [without_tensors(item) for item in value]
    return value
