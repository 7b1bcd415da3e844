"""An optimizer step without a wait for the device, counted on tensors that have a device but no numbers.

On fake tensors, reading a number is an error, and so is anything that depends on one.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.models import device as devices
from lorakit.training.step import TrainingStep
from tests import runs
from tests.training.test_losses import training_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
OPTIMIZER_KERNELS = {"adamw": "_fused_adamw_", "adamw8bit": "optimizer_update_8bit_blockwise"}


class Calls(TorchDispatchMode):
    """Counts calls, and notes copies from the host that are not asynchronous."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.waiting_copies: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function._overloadpacket.__name__
        self.counts[name] += 1
        if name in ("_to_copy", "copy_"):
            target, source = (args[0], args[1]) if name == "copy_" else (result, args[0])
            if source.device.type == "cpu" and target.device.type == "cuda":
                self.copies += 1
                if not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                    self.waiting_copies.append(f"{name} {tuple(source.shape)}")
        return result


def fake_step(real: TrainingStep, device: torch.device) -> TrainingStep:
    """Return the same step with a network of fake tensors on a device; to be called in a fake mode."""
    for module in real.session.denoiser.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = torch.empty_like(parameter, device=device)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)
    session = dataclasses.replace(real.session, device=device)
    accelerator: Any = SimpleNamespace(device=device, process_index=0, num_processes=1)
    return TrainingStep(session, accelerator, print)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 4)


@pytest.fixture(autouse=True)
def code_books(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tables of 8-bit optimizers be numbers: they are computed once, before any step."""
    from bitsandbytes import functional

    tables = {signed: functional.create_dynamic_map(signed=signed) for signed in (True, False)}
    monkeypatch.setattr(functional, "create_dynamic_map", lambda signed: tables[signed])


def make(folder: Path, data: Path, base: str, optimizer: str) -> TrainingStep:
    train = {"precision": "bf16", "batch_size": 2, "accumulate": 2, "steps": 5}
    return training_step(folder, data, base, optimizer={"name": optimizer}, train=train)


@pytest.mark.parametrize(
    ("base", "optimizer"), [("tiny-unet", "adamw"), ("tiny-dit", "adamw8bit"), ("tiny-dit", "adamw")]
)
def test_a_step_reads_no_number_and_calls_one_optimizer_kernel(base, optimizer, data, tmp_path):
    real = make(tmp_path, data, base, optimizer)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = fake_step(real, CPU)
        step.skips_on_device = True
        step.run()
        with Calls() as calls:
            step.run()
    assert calls.counts["_local_scalar_dense"] == 0
    assert calls.counts[OPTIMIZER_KERNELS[optimizer]] == 1
    assert calls.counts["linalg_vector_norm"] == 1
    assert calls.counts["convolution_backward"] + calls.counts["mm"] > 10  # the whole backward pass


@pytest.mark.parametrize(("base", "optimizer"), [("tiny-unet", "adamw8bit"), ("tiny-dit", "adamw")])
def test_every_copy_to_a_gpu_comes_from_pinned_memory_and_waits_for_nothing(
    base, optimizer, data, tmp_path, monkeypatch
):
    """The backward pass needs a real GPU; it copies nothing and is replaced by gradients of zero."""
    real = make(tmp_path, data, base, optimizer)
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if tensor.device.type == "cpu" and device.type == "cuda" and not any(tensor is one for one in pinned):
            pinned.append(tensor)
        return tensor

    monkeypatch.setattr(devices, "pin", pin)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = fake_step(real, CUDA)

        def backward(loss: torch.Tensor) -> None:
            for _, parameter in step.parameters.named:
                parameter.grad = torch.zeros_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        assert step.skips_on_device
        step.run()
        before = len(pinned)
        with Calls() as calls:
            step.run()
        step.loss.prefetcher.close()
    assert calls.counts["_local_scalar_dense"] == 0
    assert calls.waiting_copies == []
    assert 0 < calls.copies <= len(pinned)
    assert len(pinned) > before
