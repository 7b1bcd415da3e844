"""The number of images that a local model captions at once: as many as its memory takes."""

from __future__ import annotations

LARGEST_BATCH = 64
CPU_BATCH = 4  # a larger one is hardly faster there
MAX_MEMORY_SHARE = 0.85  # of the device's memory that a batch may be expected to take


class BatchSize:
    """Grows from 1 on a GPU while its memory suffices, and halves when it ends; `fixed` only halves."""

    def __init__(self, device: str, fixed: int | None = None) -> None:
        self.device, self.grows = device, fixed is None and device != "cpu"
        self.value = fixed or (CPU_BATCH if device == "cpu" else 1)
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

        with torch.device(self.device):
            total = torch.accelerator.get_memory_info(self.device)[1]
            idle, peak = torch.accelerator.memory_allocated(), torch.accelerator.max_memory_allocated()
        return idle + 2 * (peak - idle) <= MAX_MEMORY_SHARE * total
