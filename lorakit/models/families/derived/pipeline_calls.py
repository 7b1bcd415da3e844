"""Run a pipeline's own call under control: with a chosen noise, at a chosen time, up to a chosen point.

The scheduler is stood in for, `randn_tensor` answers with the noise, text conditions are recorded or replayed
in the place of `encode_prompt`, and an exception carries out what the network or the scheduler was handed.
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

_ABSENT = object()
NoiseFn = Callable[[tuple[int, ...]], torch.Tensor]
"""Noise of the shape that the pipeline asks for."""


class Intercepted(Exception):
    """What reached the point at which the call was stopped."""


class UnsupportedPipeline(Exception):
    """The pipeline does something that cannot be followed; the text says what."""


class SingleStepScheduler:
    """A scheduler of one step at the time `t`, or of none: it hands the prediction out."""

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
        """The time is given."""

    def set_begin_index(self, begin_index: int = 0) -> None:
        """There is only one."""

    def set_shift(self, shift: float) -> None:
        """It would move the time."""

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Training noises latents as the objective says, not as a sampler does."""
        return sample

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *_: Any, **__: Any
    ) -> Any:
        """Stop here."""
        raise Intercepted(model_output, sample)


@contextlib.contextmanager
def patched_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of an object or module replaced for a while."""
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
def fixed_noise(pipe: Any, draw: NoiseFn) -> Iterator[None]:
    """The pipeline's first draw of noise answered by `draw`; later ones are its own."""
    modules = {sys.modules[kind.__module__] for kind in type(pipe).__mro__ if kind.__module__ in sys.modules}
    drawers = [module for module in modules if hasattr(module, "randn_tensor")]
    waiting = [draw]

    def answer(own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def randn_tensor(shape: Any, *arguments: Any, **options: Any) -> torch.Tensor:
            if not waiting:
                return own(shape, *arguments, **options)
            return waiting.pop()(tuple(shape)).to(options.get("device"), options.get("dtype"))

        return randn_tensor

    with contextlib.ExitStack() as stack:
        for module in drawers:
            stack.enter_context(patched_attributes(module, randn_tensor=answer(module.randn_tensor)))
        yield


def noise_in_pipeline_layout(noise: torch.Tensor) -> NoiseFn:
    """`noise` (1, C, H, W) in the shape that a pipeline draws it: with a frame, or channels last."""
    channels, height, width = noise.shape[1:]

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        sides = [side for side in shape if side != 1]
        if sides == [channels, height, width]:
            return noise.reshape(shape)
        if sides == [height, width, channels]:
            return noise.permute(0, 2, 3, 1).reshape(shape)
        raise UnsupportedPipeline(f"it draws noise of shape {shape} for latents {tuple(noise.shape[1:])}")

    return draw


@contextlib.contextmanager
def intercept_denoiser(network: Any) -> Iterator[None]:
    """The network hands out its arguments instead of computing."""

    @functools.wraps(network.forward)  # some pipelines pass what its signature names
    def forward(*arguments: Any, **options: Any) -> Any:
        raise Intercepted(arguments, options)

    with patched_attributes(network, forward=forward):
        yield


@contextlib.contextmanager
def count_denoiser_calls(network: Any) -> Iterator[list[None]]:
    """Grows by one with every call of the network."""
    calls: list[None] = []
    own = network.forward

    @functools.wraps(own)
    def forward(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        return own(*arguments, **options)

    with patched_attributes(network, forward=forward):
        yield calls


def call_until_intercepted(
    pipe: Any, arguments: Mapping[str, Any], t: torch.Tensor | None, draw: NoiseFn
) -> tuple[Any, ...]:
    """Call the pipeline, with gradients where they are on, at one time or for no step at all (`t` None).

    Returns what was handed to the point that stopped it; a call that comes to its end is an error.
    """
    bare = inspect.unwrap(type(pipe).__call__)  # without its no_grad
    with fixed_noise(pipe, draw), patched_attributes(pipe, scheduler=SingleStepScheduler(pipe.scheduler, t)):
        try:
            bare(pipe, **arguments)
        except Intercepted as handed:
            return handed.args
    raise UnsupportedPipeline("its call ends without a prediction")


def accepts_arguments(pipe: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a pipeline takes arguments, which it checks before it encodes text."""

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
    """Collects what `encode_prompt` returns, call by call."""
    made: list[Any] = []
    own = getattr(pipe, "encode_prompt", None)
    if own is None:
        raise UnsupportedPipeline("it has no encode_prompt")

    def encode_prompt(*arguments: Any, **options: Any) -> Any:
        made.append(own(*arguments, **options))
        return made[-1]

    with patched_attributes(pipe, encode_prompt=encode_prompt):
        yield made


@contextlib.contextmanager
def replay_encode_prompt(
    pipe: Any, made: Sequence[Any], parts: Sequence[str], like: torch.Tensor
) -> Iterator[None]:
    """`encode_prompt` returns what was recorded, and nothing else of `parts`, the text encoders, is there."""
    waiting = list(made)

    def encode_prompt(*_: Any, **__: Any) -> Any:
        if not waiting:
            raise UnsupportedPipeline("it encodes text more often than before")
        return waiting.pop(0)

    absent = {}
    for name in parts:
        config = getattr(getattr(pipe, name), "config", None)
        absent[name] = SimpleNamespace(dtype=like.dtype, device=like.device, config=config)
    with patched_attributes(pipe, encode_prompt=encode_prompt, **absent):
        yield


def flatten_nested(values: Any, name: str) -> dict[str, torch.Tensor]:
    """Nested tuples and lists of tensors and plain values as tensors `name.0` ..., and how they nest."""
    tensors: list[torch.Tensor] = []

    def outline(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value.detach().clone())
            return {"tensor": len(tensors) - 1}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [outline(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise UnsupportedPipeline(f"its text conditions hold a {type(value).__name__}")

    text = json.dumps(outline(values)).encode()
    nesting = torch.tensor(list(text), dtype=torch.uint8)
    return {f"{name}.nesting": nesting, **{f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}}


def restore_nested(packed: Mapping[str, torch.Tensor], name: str) -> Any:
    """What `pack` was given under this name."""

    def build(node: dict[str, Any]) -> Any:
        ((kind, content),) = node.items()
        if kind == "tensor":
            return packed[f"{name}.{content}"]
        if kind == "value":
            return content
        items = [build(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    return build(json.loads(bytes(packed[f"{name}.nesting"].tolist())))


def nested_tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in nested_tensors(item)]
    return []


def without_tensors(value: Any) -> Any:
    """The same nesting with every tensor left out: settings such as sizes."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, Mapping):
        return {name: without_tensors(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [without_tensors(item) for item in value]
    return value
