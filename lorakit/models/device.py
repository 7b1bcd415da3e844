"""The device that models run on unless the user names one, and the data types that suit it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch

from lorakit.core.errors import ConfigError
from lorakit.core.platform import total_memory

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Data type of computations, by the recipe's `train.precision`."""


def default_device() -> torch.device:
    """Return the accelerator of this machine (CUDA, ROCm, XPU, MPS), else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def supported_precisions(device: torch.device | str) -> tuple[str, ...]:
    """Return the values of `train.precision` that a device computes in hardware, the preferred one first.

    Turing GPUs (T4, RTX 20xx) and older ones have no bfloat16: torch emulates it there, slowly.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return ("bf16", "fp16", "fp32")
    if device.type == "cuda":  # ROCm too
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "xpu":
        with torch.xpu.device(device):
            has_bf16 = torch.xpu.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
    else:  # an accelerator that nobody has tried
        return ("fp32",)
    return ("bf16", "fp16", "fp32") if has_bf16 else ("fp16", "fp32")


def check_precision(device: torch.device | str, precision: str) -> None:
    """Raise ConfigError, with the precision to use instead, if a device does not support `precision`."""
    supported = supported_precisions(device)
    if precision not in supported:
        raise ConfigError(
            f"this device ({device_name(torch.device(device))}) cannot compute in {precision}",
            where="train.precision",
            remedy=f"set train.precision={supported[0]}",
        )


def nearest_precision(device: torch.device | str, precision: str) -> str:
    """Return `precision` if a device supports it, else the one that the device prefers."""
    supported = supported_precisions(device)
    return precision if precision in supported else supported[0]


@dataclass(frozen=True)
class DeviceInfo:
    """A device of this machine, and what it computes."""

    device: torch.device
    name: str
    platform: str
    """CUDA, ROCm, XPU, MPS or CPU."""
    memory_bytes: int
    """Memory of the device; of the machine, where they share it."""
    precisions: tuple[str, ...]
    """Values of `train.precision` that it computes in hardware, the preferred one first."""

    def to_json(self) -> dict[str, Any]:
        """Return the device as plain values."""
        gib = round(self.memory_bytes / 2**30, 1)
        values = {"device": str(self.device), "name": self.name, "platform": self.platform}
        return values | {"memory_gib": gib, "precisions": list(self.precisions)}


def list_devices() -> list[DeviceInfo]:
    """Return the devices of this machine: its GPUs, the default one first, and the CPU."""
    first = default_device()
    devices = [torch.device("cpu")]
    if first.type != "cpu":
        indices = range(torch.accelerator.device_count())
        devices = [torch.device(first.type, index) for index in indices] + devices
    return [_describe(device) for device in devices]


def _describe(device: torch.device) -> DeviceInfo:
    memory, name = total_memory(), platform.processor() or platform.machine()
    platforms = {"cuda": "ROCm" if torch.version.hip else "CUDA"}
    if device.type in ("cuda", "xpu"):
        properties = getattr(torch, device.type).get_device_properties(device)
        memory, name = int(properties.total_memory), str(properties.name)
    label = platforms.get(device.type, device.type.upper())
    return DeviceInfo(device, name, label, memory, supported_precisions(device))


def device_name(device: torch.device) -> str:
    """Return the name of a GPU's model; of other devices their type."""
    if device.type in ("cuda", "xpu") and getattr(torch, device.type).is_available():
        return str(getattr(torch, device.type).get_device_name(device))
    return device.type


def inference_dtype(device: torch.device | str) -> torch.dtype:
    """Return a half precision for GPUs that compute it fast (CUDA, ROCm, XPU), else float32.

    It is bfloat16, or float16 where the GPU has no bfloat16.
    """
    if torch.device(device).type not in ("cuda", "xpu"):
        return torch.float32
    return PRECISIONS[supported_precisions(device)[0]]


def compute_dtype(precision: str) -> torch.dtype:
    """Return the data type of weights and computations for a `train.precision` ("bf16", "fp16" or "fp32").

    It is the same on all devices, and without autocast, which casts each weight and input anew.
    """
    return PRECISIONS[precision]


def can_pin(device: torch.device) -> bool:
    """Return True for a device that copies from page-locked host memory while the host goes on."""
    return device.type in ("cuda", "xpu") and torch.accelerator.is_available()


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host in page-locked memory, if `device` copies from it."""
    return tensor.pin_memory() if tensor.device.type == "cpu" and can_pin(device) else tensor


def copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device without a wait for the device."""
    return tensor if tensor.device == device else pin(tensor, device).to(device, non_blocking=True)


class PendingNumbers:
    """A few numbers of a device on their way to the host, which goes on meanwhile."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers, self._event, self._values = numbers.detach(), None, list[float]()
        if can_pin(numbers.device):
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers.detach(), non_blocking=True)
            self._event = torch.Event(numbers.device)
            self._event.record()

    @property
    def arrives(self) -> bool:
        """True if `is_ready` becomes true by itself; on some devices every read waits for all their work."""
        return self._event is not None or self._numbers.device.type == "cpu"

    @property
    def is_ready(self) -> bool:
        """True if reading does not wait."""
        return self.arrives and (self._event is None or bool(self._event.query()))

    def read(self) -> list[float]:
        """Return the numbers; waits until they are there."""
        if not self._values:
            if self._event is not None:
                self._event.synchronize()
            self._values = self._numbers.tolist()
        return self._values
