"""Precisions and data types of a device: GPUs without bf16 use fp16."""

from __future__ import annotations

import contextlib

import pytest
import torch

from lorakit.core.errors import ConfigError
from lorakit.models import device as devices

AMPERE, TURING = ("bf16", "fp16", "fp32"), ("fp16", "fp32")


@pytest.fixture
def gpu(monkeypatch):
    """gpu(kind, has_bf16): a device of this kind, as torch describes it."""

    def install(kind: str, has_bf16: bool) -> None:
        if kind == "mps":
            monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: has_bf16)
            return
        module = getattr(torch, kind)
        monkeypatch.setattr(module, "device", lambda device: contextlib.nullcontext())
        # an emulation does not count
        monkeypatch.setattr(
            module, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
        )

    return install


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
@pytest.mark.parametrize(("has_bf16", "expected"), [(True, AMPERE), (False, TURING)])
def test_a_gpu_supports_bf16_only_in_hardware(kind, has_bf16, expected, gpu):
    gpu(kind, has_bf16)
    assert devices.supported_precisions(kind) == expected


@pytest.mark.parametrize(("kind", "expected"), [("cpu", AMPERE), ("meta", ("fp32",)), ("hpu", ("fp32",))])
def test_other_devices_support_what_torch_computes_there(kind, expected):
    assert devices.supported_precisions(kind) == expected


@pytest.mark.parametrize(
    ("kind", "has_bf16", "precision", "remedy"),
    [
        ("cuda", False, "bf16", "train.precision=fp16"),
        ("xpu", False, "bf16", "train.precision=fp16"),
        ("mps", False, "bf16", "train.precision=fp16"),
        ("hpu", False, "fp16", "train.precision=fp32"),
    ],
)
def test_an_unsupported_precision_is_refused_with_the_one_to_use(kind, has_bf16, precision, remedy, gpu):
    if kind != "hpu":
        gpu(kind, has_bf16)
    with pytest.raises(ConfigError) as caught:
        devices.check_precision(kind, precision)
    assert remedy in str(caught.value)
    devices.check_precision(kind, remedy.partition("=")[2])
    assert devices.nearest_precision(kind, precision) == remedy.partition("=")[2]


@pytest.mark.parametrize(
    ("kind", "has_bf16", "dtype"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("xpu", True, torch.bfloat16),
        ("xpu", False, torch.float16),
        ("cpu", True, torch.float32),
    ],
)
def test_models_run_in_a_half_precision_of_the_gpu(kind, has_bf16, dtype, gpu):
    if kind != "cpu":
        gpu(kind, has_bf16)
    assert devices.inference_dtype(kind) == dtype


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_weights_and_computations_have_the_precision_of_the_training(precision, dtype):
    assert devices.compute_dtype(precision) == dtype
