"""Batches loaded ahead: a thread reads, collates and pins the next ones while the device computes.

Noise and timesteps come from keyed generators of the host, so that they have the same bytes on every device
and validation losses of different machines can be compared. On a device that copies from page-locked memory,
none of it costs time: it is generated ahead, and copied while the device computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from lorakit.data.batch_sampler import SampleIndex
from lorakit.data.dataset import Batch, CaptionTransform, TrainingSet
from lorakit.models import device as devices
from lorakit.training.objective import SampledLevels


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

    def move(self, move: Callable[[torch.Tensor], torch.Tensor]) -> LoadedBatch:
        """Return the batch with all tensors moved by a function."""
        return LoadedBatch(self.batch.move(move), move(self.noise), self.levels.move(move))

    def copy_to(self, device: torch.device) -> LoadedBatch:
        """Return the batch on a device, without a wait for it."""
        return self.move(lambda tensor: devices.copy_to(tensor, device))


class Prefetcher:
    """Loads batches by `load`, those that were requested ahead in a thread if `device` computes meanwhile.

    A CPU has nothing to overlap: there, batches are loaded when they are used, unless `ahead`.
    """

    def __init__(
        self,
        load: Callable[[BatchRequest], LoadedBatch],
        device: torch.device,
        *,
        ahead: bool | None = None,
    ) -> None:
        self._load, self._device = load, device
        self.is_ahead = device.type != "cpu" if ahead is None else ahead
        self._executor: ThreadPoolExecutor | None = None
        self._loading: dict[BatchRequest, Future[LoadedBatch]] = {}

    def request(self, requests: Iterable[BatchRequest]) -> None:
        """Load these batches ahead; those that were requested before and are not among them are dropped."""
        if not self.is_ahead:
            return
        self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="lorakit-prefetch")
        before, self._loading = self._loading, {}
        for request in requests:
            if request.data.is_cached and request not in self._loading:
                future = before.pop(request, None)
                self._loading[request] = future or self._executor.submit(self._load_pinned, request)
        for future in before.values():
            future.cancel()

    def take(self, request: BatchRequest) -> LoadedBatch:
        """Return a batch in host memory: the one that was loaded ahead, or loaded now."""
        future = self._loading.get(request)
        return self._load(request) if future is None else future.result()

    def _load_pinned(self, request: BatchRequest) -> LoadedBatch:
        return self._load(request).move(lambda tensor: devices.pin(tensor, self._device))

    def close(self) -> None:
        """Drop what was loaded ahead, and end the thread."""
        self._loading = {}
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
