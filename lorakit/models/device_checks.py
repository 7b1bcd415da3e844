"""Measurements of a device: its speed, and if the 8-bit optimizer and quantized layers run on it."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from contextlib import suppress

import torch
from torch import nn

from lorakit.core.errors import first_line
from lorakit.core.progress import Progress
from lorakit.models import device as devices
from lorakit.models.memory import quantized_layers

MEASURED_SECONDS = 2.0


def measure_teraflops(device: torch.device, *, quiet: bool = False) -> float:
    """Measure 10^12 operations a second in forward and backward passes, for about two seconds.

    Half of the operations are convolutions as in a U-Net, half are matrix products as in a transformer, in
    the precision that training uses on this device. A real step reaches about this speed at best.
    """
    dtype = devices.compute_dtype(devices.supported_precisions(device)[0])
    count = 1 if device.type == "cpu" else 8
    convolution = nn.Conv2d(320, 320, 3, padding=1, bias=False).to(device).requires_grad_(False)
    products = nn.Sequential(nn.Linear(1280, 5120, bias=False), nn.Linear(5120, 1280, bias=False))
    products.to(device).requires_grad_(False)
    image = torch.randn(count, 320, 32, 32, device=device, requires_grad=True)
    tokens = torch.randn(count * 72, 1280, device=device, requires_grad=True)
    operations = (
        2 * 2 * count * (9 * 320 * 320 * 32 * 32 + 72 * 2 * 1280 * 5120)
    )  # forward, and for the inputs

    def run() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            result = convolution(image).float().square().mean() + products(tokens).float().square().mean()
        result.backward()

    run()  # the first one also compiles and allocates
    _wait(device)
    rounds, start = 0, time.perf_counter()
    with Progress("measuring speed", 10, quiet=quiet) as progress:
        while (seconds := time.perf_counter() - start) < MEASURED_SECONDS:
            run()
            _wait(device)
            rounds += 1
            progress.update(min(10, int(10 * seconds / MEASURED_SECONDS)))
        seconds = time.perf_counter() - start
        progress.update(10)
    return rounds * operations / seconds / 1e12


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def check_8bit_optimizer(device: torch.device) -> str | None:
    """Take a step of the default optimizer; return what failed, or None."""
    _silence_bitsandbytes()
    try:
        import bitsandbytes

        parameter = nn.Parameter(torch.ones(64, 64, device=device))
        optimizer = bitsandbytes.optim.AdamW8bit([parameter], lr=0.1, min_8bit_size=1)
        parameter.square().sum().backward()
        optimizer.step()
        moved = bool((parameter < 1).all()) and bool(torch.isfinite(parameter).all())
    except Exception as error:  # any code of a library for devices runs here
        return first_line(error)
    return None if moved else "a step did not change the weights"


def check_quantized_layers(device: torch.device, quantization: str) -> str | None:
    """Compare a quantized layer and its gradient with full precision; return what failed, or None."""
    _silence_bitsandbytes()
    try:
        dtype = devices.compute_dtype(devices.supported_precisions(device)[0])
        linear = nn.Linear(64, 64)
        exact, value = (torch.linspace(-1, 1, 128).reshape(2, 64) for _ in range(2))
        layer = quantized_layers.quantized_layer(linear, quantization, dtype, device)
        exact.requires_grad_()
        value = value.to(device, dtype).requires_grad_()
        expected, result = linear(exact), layer(value)
        for output in (expected, result):
            output.float().square().sum().backward()
        pairs = ((result, expected), (value.grad, exact.grad))
        is_close = all(_relative_error(value, exact) < 0.4 for value, exact in pairs)
    except Exception as error:  # any code of a library for devices runs here
        return first_line(error)
    return None if is_close else "the result is wrong"


def _relative_error(result: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    if result is None or expected is None:
        return float("inf")
    with torch.no_grad():
        return float((result.float().cpu() - expected).norm() / expected.norm())


def _silence_bitsandbytes() -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def unused_gpu() -> str | None:
    """Return the name of a GPU that the installed torch was not built for; None if there is none."""
    if torch.accelerator.is_available():
        return None
    if torch.version.cuda is None and (
        names := _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    ):
        return names.splitlines()[0].strip()
    if (
        torch.version.hip is None
        and _output("rocminfo")
        and "Device Type:             GPU" in _output("rocminfo")
    ):
        return "AMD GPU"
    return None


def unusable_driver() -> str | None:
    """Return the name of an NVIDIA GPU that torch was built for but cannot reach; None if there is none."""
    if torch.accelerator.is_available() or torch.version.cuda is None:
        return None
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return names.splitlines()[0].strip() if names else None


def _output(program: str, *arguments: str) -> str:
    """Return what a program prints; empty if it is not installed or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""
