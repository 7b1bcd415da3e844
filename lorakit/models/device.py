"""The device that models run on unless the user names one, and the data types that suit it."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """Return the accelerator of this machine (CUDA, ROCm, XPU, MPS), else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def inference_dtype(device: torch.device | str) -> torch.dtype:
    """Return bfloat16 for GPUs that compute it fast (CUDA, ROCm, XPU), else float32."""
    return torch.bfloat16 if torch.device(device).type in ("cuda", "xpu") else torch.float32


def weight_dtype(device: torch.device | str, precision: str) -> torch.dtype:
    """Return the data type of frozen weights for a training `precision` ("bf16" or "fp32").

    On a CPU, autocast over float32 weights is faster than bfloat16 weights.
    """
    return inference_dtype(device) if precision == "bf16" else torch.float32


def compute_dtype(precision: str) -> torch.dtype:
    """Return the data type of computations for a training `precision` ("bf16" or "fp32")."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
