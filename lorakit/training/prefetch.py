"""Batches loaded ahead: a thread reads, collates and pins the next ones while the device computes.

Noise and timesteps come from keyed generators of the host, so that they have the same bytes on every device
and validation losses of different machines can be compared. On a device that copies from page-locked memory,
none of it costs time: it is generated ahead, and copied while the device computes. A CPU has nothing to
overlap. There, small batches of several steps are loaded one after another: between two steps of a network
the code and the tables that this needs would leave the processor's caches, and it would take five times as
long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from lorakit.core.errors import LorakitError
from lorakit.data.batch_sampler import SampleIndex
from lorakit.data.dataset import Batch, CaptionTransform, TrainingSet
from lorakit.models import device as devices
from lorakit.training.objective import SampledLevels

GROUP_STEPS = 64  # steps whose batches are loaded one after another without a thread
GROUP_BYTES = 4 << 20  # of the batches that wait for their use; larger ones have steps that take much longer


@dataclass(frozen=True)
class BatchRequest:
    """Samples of one shape with their noise and timesteps; equal requests load equal bytes.

    `purpose` keys the noise; `uniforms` (B,) in [0, 1) give the timesteps; `transform` changes captions.
    """

    data: TrainingSet
    samples: tuple[SampleIndex, ...]
    purpose: str
    uniforms: tuple[float, ...]
    transform: CaptionTransform | None = None

    @classmethod
    def of(
        cls,
        data: TrainingSet,
        samples: Sequence[SampleIndex],
        purpose: str,
        uniforms: Sequence[float],
        transform: CaptionTransform | None = None,
    ) -> BatchRequest:
        """Return a request for sequences of any type."""
        return cls(data, tuple(samples), purpose, tuple(uniforms), transform)


@dataclass(frozen=True)
class LoadedBatch:
    """The tensors of a request: data, noise (B, C, ..., H, W), and noise levels."""

    batch: Batch
    noise: torch.Tensor
    levels: SampledLevels

    @property
    def nbytes(self) -> int:
        """Bytes of the latents, the noise and the conditioning."""
        batch = self.batch
        return sum(tensor.nbytes for tensor in (batch.latents, self.noise, *batch.cond.values()))

    def move(self, move: Callable[[torch.Tensor], torch.Tensor]) -> LoadedBatch:
        """Return the batch with all tensors moved by a function."""
        return LoadedBatch(self.batch.move(move), move(self.noise), self.levels.move(move))

    def copy_to(self, device: torch.device) -> LoadedBatch:
        """Return the batch on a device, without a wait for it."""
        return self.move(lambda tensor: devices.copy_to(tensor, device))


class Prefetcher:
    """Loads batches by `load`, those that were requested in a thread if `device` computes meanwhile.

    Otherwise, unless `in_thread`, small ones are loaded in groups when the first of a group is used.
    """

    def __init__(
        self,
        load: Callable[[BatchRequest], LoadedBatch],
        device: torch.device,
        *,
        in_thread: bool | None = None,
    ) -> None:
        self._load, self._device = load, device
        self.in_thread = device.type != "cpu" if in_thread is None else in_thread
        self._executor: ThreadPoolExecutor | None = None
        self._loading: dict[BatchRequest, Future[LoadedBatch]] = {}
        # without a thread; None until it is loaded
        self._waiting: dict[BatchRequest, LoadedBatch | None] = {}

    @property
    def steps_ahead(self) -> int:
        """The number of steps after the current one whose batches can be requested with its own."""
        return 1 if self.in_thread else GROUP_STEPS - 1

    def request(self, requests: Iterable[BatchRequest]) -> None:
        """Load these batches ahead; those that were requested before and are not among them are dropped."""
        cached = [request for request in requests if request.data.is_cached]
        if not self.in_thread:
            self._waiting = {request: self._waiting.get(request) for request in cached}
            return
        self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="lorakit-prefetch")
        before, self._loading = self._loading, {}
        for request in cached:
            if request not in self._loading:
                future = before.pop(request, None)
                self._loading[request] = future or self._executor.submit(self._load_pinned, request)
        for future in before.values():
            future.cancel()

    def take(self, request: BatchRequest) -> LoadedBatch:
        """Return a batch in host memory: the one that was loaded ahead, or loaded now."""
        if request in self._waiting:
            loaded = self._waiting.pop(request)
            return loaded or self._load_group(request)
        future = self._loading.get(request)
        return self._load(request) if future is None else future.result()

    def _load_group(self, request: BatchRequest) -> LoadedBatch:
        """Load a batch, and those that wait behind it as long as they are small."""
        first = self._load(request)
        size = first.nbytes
        for other, loaded in list(self._waiting.items()):
            if size > GROUP_BYTES:
                break
            if loaded is None:
                try:
                    loaded = self._waiting[other] = self._load(other)
                except LorakitError:  # raised again when this batch is used
                    break
            size += loaded.nbytes
        return first

    def _load_pinned(self, request: BatchRequest) -> LoadedBatch:
        return self._load(request).move(lambda tensor: devices.pin(tensor, self._device))

    def close(self) -> None:
        """Drop what was loaded ahead, and end the thread."""
        self._loading, self._waiting = {}, {}
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
