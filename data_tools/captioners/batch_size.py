"""The number of images that a local model captions at once: as many as its memory takes."""

from __future__ import annotations

LARGEST_BATCH = 64
OTHER_BATCH = 4  # on a CPU, where a larger one is hardly faster, and on devices without their memory's size
MAX_MEMORY_SHARE = 0.85  # of the free memory that a batch may be expected to take


class BatchSize:
    """Grows from 1 on a GPU while its memory suffices, and halves when it ends; `fixed` only halves."""

    def __init__(self, device: str, fixed: int | None = None) -> None:
        self.device, is_gpu = device, device.partition(":")[0] in ("cuda", "xpu")
        self.grows = fixed is None and is_gpu
        self.value = fixed or (1 if is_gpu else OTHER_BATCH)
        self._limit = LARGEST_BATCH

    def record_success(self, size: int) -> None:
        """Count a batch that fitted: the next one may be twice as large."""
        if self.grows and size == self.value < self._limit and self._has_room():
            self.value = min(2 * self.value, self._limit)

    def record_out_of_memory(self, size: int) -> None:
        """Count a batch that did not fit: no later one is as large."""
        self._limit = max(1, size // 2)
        self.value = min(self.value, self._limit)

    def _has_room(self) -> bool:
        """Return True if a batch of twice the size is expected to fit."""
        import torch

        memory = torch.accelerator
        idle, peak = memory.memory_allocated(self.device), memory.max_memory_allocated(self.device)
        free = memory.get_memory_info(self.device)[0] + memory.memory_reserved(self.device) - idle
        return 2 * (peak - idle) <= MAX_MEMORY_SHARE * free
