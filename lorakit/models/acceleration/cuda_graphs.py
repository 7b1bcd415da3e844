"""Forward and backward passes of a denoiser as CUDA graphs: recorded once for a shape, then replayed.

A replay is one call where the pass launches thousands of kernels, each of which costs the host about 5
microseconds. The recorded backward pass ends with the gradients added to the buffer of the optimizer. The
kernels are those of the pass without a graph, in the same order, so the numbers are the same.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorakit.core.errors import first_line
from lorakit.models import memory
from lorakit.models.acceleration.host_waits import find_host_waits

Tensors = dict[str, torch.Tensor]
Network = Callable[[torch.Tensor, torch.Tensor, Tensors], torch.Tensor]
"""(noisy latents, timesteps, conditioning) -> prediction."""
Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Record the work of a function; returns a function that repeats it on the same memory."""

PASSES_BEFORE = 2
"""Passes of a shape without a graph: libraries choose kernels and allocate in their first ones."""


class CudaRecorder:
    """Recorder of CUDA graphs, which share one pool of memory because they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # another thread may load the next batch meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


@dataclass
class _ShapeGraph:
    """Both passes of one shape: their static inputs and outputs."""

    network: Network
    parameters: Sequence[torch.nn.Parameter]
    add_gradients: Callable[[], None]
    latents: torch.Tensor
    timesteps: torch.Tensor
    cond: Tensors
    replay_forward: Callable[[], None] = field(init=False)
    replay_backward: Callable[[], None] = field(init=False)
    output: torch.Tensor = field(init=False)
    output_gradient: torch.Tensor = field(init=False)

    def record(self, record: Record) -> None:
        """Record the forward pass, then the backward pass."""
        self.replay_forward = record(self._forward)
        self.output_gradient = torch.zeros_like(self.output)
        self.replay_backward = record(self._backward)

    def copy_inputs(self, latents: torch.Tensor, timesteps: torch.Tensor, cond: Tensors) -> None:
        """Copy the inputs of a pass to where the graph reads them."""
        pairs = [(self.latents, latents), (self.timesteps, timesteps)]
        pairs += [(self.cond[name], value) for name, value in cond.items()]
        for static, value in pairs:
            static.copy_(value, non_blocking=True)

    def _forward(self) -> None:
        with torch.enable_grad():
            self.output = self.network(self.latents, self.timesteps, self.cond)

    def _backward(self) -> None:
        gradients = torch.autograd.grad(
            self.output, list(self.parameters), self.output_gradient, allow_unused=True
        )
        others = [parameter.grad for parameter in self.parameters]  # of a pass without the graph
        _set_gradients(self.parameters, gradients)
        self.add_gradients()
        _set_gradients(self.parameters, others)


def _set_gradients(
    parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor | None]
) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


class _Replay(torch.autograd.Function):
    """A pass by replaying its graph. The parameters get no gradients from autograd: the graph adds them."""

    @staticmethod
    def forward(ctx: Any, graph: _ShapeGraph, owner: GraphedNetwork, anchor: torch.Tensor) -> torch.Tensor:
        ctx.graph, ctx.owner = graph, owner
        graph.replay_forward()
        return graph.output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        ctx.graph.output_gradient.copy_(gradient)
        ctx.graph.replay_backward()
        ctx.owner.pending = False
        ctx.owner.after_backward()
        return None, None, None


class GraphedNetwork:
    """A network whose passes are replayed from graphs, one for each shape of its inputs.

    Passes without gradients, and a second pass before the backward pass of the first, run without a graph.
    `add_gradients` moves gradients from the parameters to the optimizer's buffer; `after_backward` notes that
    a replay has added some. `refuse` is called once for each shape that cannot be recorded, with the reason.
    """

    def __init__(
        self,
        network: Network,
        parameters: Sequence[torch.nn.Parameter],
        add_gradients: Callable[[], None],
        after_backward: Callable[[], None],
        refuse: Callable[[str], None],
        *,
        record: Record | None = None,
        max_shapes: int = 8,
    ) -> None:
        self.network, self.parameters = network, list(parameters)
        self.add_gradients, self.after_backward, self.refuse = add_gradients, after_backward, refuse
        self.pending = False
        """True between a recorded forward pass and its backward pass."""
        self._record, self._max_shapes = record or CudaRecorder(), max_shapes
        self._passes: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, _ShapeGraph | None] = {}
        self._anchor = torch.zeros((), device=self.parameters[0].device, requires_grad=True)

    @property
    def num_graphs(self) -> int:
        """Number of shapes that are recorded."""
        return sum(graph is not None for graph in self._graphs.values())

    def forget(self) -> None:
        """Forget all graphs and free their memory, such as after it ran out."""
        self._graphs.clear()
        self._passes.clear()
        self.pending = False

    def __call__(self, latents: torch.Tensor, timesteps: torch.Tensor, cond: Tensors) -> torch.Tensor:
        """Return the network's prediction."""
        if not torch.is_grad_enabled() or self.pending or any(v.requires_grad for v in cond.values()):
            return self.network(latents, timesteps, cond)
        key = _shape_key(latents, timesteps, cond)
        graph = self._graph(key, latents, timesteps, cond)
        if graph is None:
            return self.network(latents, timesteps, cond)
        graph.copy_inputs(latents, timesteps, cond)
        self.pending = True
        return _Replay.apply(graph, self, self._anchor)

    def _graph(
        self, key: Hashable, latents: torch.Tensor, timesteps: torch.Tensor, cond: Tensors
    ) -> _ShapeGraph | None:
        """Return the graph of a shape, recorded now if it is time; None for a pass without one."""
        if key in self._graphs:
            return self._graphs[key]
        passes = self._passes[key] = self._passes.get(key, 0) + 1
        if passes == PASSES_BEFORE:
            waits = find_host_waits(lambda: self._without_gradients(latents, timesteps, cond))
            if waits:
                self._graphs[key] = None
                self.refuse(f"the host waits for the device in {', '.join(waits[:3])}")
        if passes <= PASSES_BEFORE or key in self._graphs:
            return None
        self._graphs[key] = self._record_shape(latents, timesteps, cond)
        return self._graphs[key]

    def _without_gradients(self, latents: torch.Tensor, timesteps: torch.Tensor, cond: Tensors) -> None:
        with torch.no_grad(), _uncompiled():
            self.network(latents, timesteps, cond)

    def _record_shape(
        self, latents: torch.Tensor, timesteps: torch.Tensor, cond: Tensors
    ) -> _ShapeGraph | None:
        if self.num_graphs >= self._max_shapes:
            self.refuse(f"there are more than {self._max_shapes} shapes")
            return None
        statics = {name: value.detach().clone() for name, value in cond.items()}
        inputs = latents.detach().clone(), timesteps.detach().clone(), statics
        graph = _ShapeGraph(self.network, self.parameters, self.add_gradients, *inputs)
        self.after_backward()  # the recorded pass adds to the buffer, whatever is in it
        try:
            graph.record(self._record)
        except (RuntimeError, MemoryError) as error:
            _set_gradients(self.parameters, [None] * len(self.parameters))
            if memory.is_out_of_memory(error):  # graphs keep the activations of their passes
                memory.empty_device_cache(latents.device)
            self.refuse(first_line(error))
            return None
        return graph


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Run compiled code as it is written: compilers see no single operations."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _shape_key(latents: torch.Tensor, timesteps: torch.Tensor, cond: Mapping[str, torch.Tensor]) -> Hashable:
    named = {"": latents, " ": timesteps, **cond}
    return tuple((name, value.shape, value.dtype) for name, value in sorted(named.items()))
