"""Measurements of a device, and GPUs that the installed torch cannot use."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
import torch

from lorakit.models import device, device_checks
from lorakit.models.memory import quantized_layers

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUANTIZED_CHECKS = NF4_CHECK, INT8_CHECK, FP8_CHECK = [
    functools.partial(device_checks.check_quantized_layers, quantization=name)
    for name in ("nf4", "int8", "fp8")
]


def test_the_speed_of_a_device_is_measured(monkeypatch):
    monkeypatch.setattr(device_checks, "MEASURED_SECONDS", 0.05)
    assert 1e-4 < device_checks.measure_teraflops(CPU, quiet=True) < 100


@pytest.mark.parametrize("check", [device_checks.check_8bit_optimizer, *QUANTIZED_CHECKS])
def test_the_8_bit_optimizer_and_quantized_layers_work_on_this_machine(check):
    assert check(CPU) is None


@pytest.mark.parametrize(
    ("target", "check"),
    [
        ("bitsandbytes.optim.AdamW8bit", device_checks.check_8bit_optimizer),
        ("bitsandbytes.matmul_4bit", NF4_CHECK),
        ("torch._int_mm", INT8_CHECK),
    ],
)
def test_a_part_that_fails_on_the_device_is_reported_with_the_reason(monkeypatch, target, check):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel")

    assert check(CPU) is None
    monkeypatch.setattr(target, fail)
    assert check(CPU) == "no kernel"


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_a_quantized_layer_with_a_wrong_result_or_gradient_is_reported(monkeypatch, kind):
    layer = quantized_layers.LAYERS[kind]
    multiply = layer._multiply
    monkeypatch.setattr(layer, "_multiply", lambda self, value: 2 * multiply(self, value))
    assert device_checks.check_quantized_layers(CPU, kind) == "the result is wrong"
    monkeypatch.setattr(layer, "_multiply", lambda self, value: multiply(self, value.detach()))
    assert "does not require grad" in device_checks.check_quantized_layers(CPU, kind)


def test_an_optimizer_that_changes_nothing_is_reported(monkeypatch):
    monkeypatch.setattr("bitsandbytes.optim.AdamW8bit.step", lambda self: None)
    assert device_checks.check_8bit_optimizer(CPU) == "a step did not change the weights"


@pytest.mark.parametrize(
    ("cuda", "printed", "unused", "driver"),
    [
        (None, "NVIDIA GeForce RTX 4070\n", "NVIDIA GeForce RTX 4070", None),
        (None, "Tesla T4\nTesla T4", "Tesla T4", None),
        ("13.2", "NVIDIA GeForce RTX 3060", None, "NVIDIA GeForce RTX 3060"),
        ("13.2", "", None, None),
        (None, "", None, None),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_found_by_its_driver(monkeypatch, cuda, printed, unused, driver):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(
        device_checks, "_output", lambda program, *_: printed if program == "nvidia-smi" else ""
    )
    assert device_checks.unused_gpu() == unused
    assert device_checks.unusable_driver() == driver


def test_nothing_is_said_about_drivers_where_an_accelerator_works(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(device_checks, "_output", lambda *_: "NVIDIA GeForce RTX 4070")
    assert device_checks.unused_gpu() is None
    assert device_checks.unusable_driver() is None


def test_this_machine_has_at_least_a_cpu():
    *_, cpu = device.list_devices()
    assert cpu.device == CPU
    assert cpu.memory_bytes > 0
    assert cpu.to_json()["precisions"] == ["bf16", "fp16", "fp32"]


# ---- devices are chosen in one place -----------------------------------------------------------------------

KINDS = {"cuda", "mps", "xpu", "hip"}
CHOOSING = (
    "lorakit/models/device.py",
    "lorakit/models/device_checks.py",
    "lorakit/models/acceleration/cuda_graphs.py",  # other devices have none
    "lorakit/models/memory/host_memory.py",  # registers memory with CUDA's runtime; others have pinned memory
    "lorakit/planner/cards.py",  # a table of cards, which says what torch calls each
)
SOURCES = [
    file
    for package in ("lorakit", "data_tools")
    for file in sorted((ROOT / package).rglob("*.py"))
    if file.relative_to(ROOT).as_posix() not in CHOOSING
]


def uses_of_one_kind(tree: ast.AST) -> list[str]:
    """Return expressions for one kind of device: `torch.cuda.x`, `.cuda()`, `"cuda" if x else y`."""
    return [ast.unparse(node) for node in ast.walk(tree) if serves_one_kind(node)]


def serves_one_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and node.attr in KINDS:
        return ast.unparse(node.value) in ("torch", "torch.backends", "torch.version")
    if isinstance(node, ast.IfExp):
        return names_kind(node.body) or names_kind(node.orelse)
    if isinstance(node, ast.Call):
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        return method in KINDS or any(map(names_kind, arguments))
    return False


def names_kind(node: ast.AST) -> bool:
    """Return True for a text such as "cuda" or "cuda:0"."""
    return isinstance(node, ast.Constant) and str(node.value).partition(":")[0] in KINDS


@pytest.mark.parametrize(
    "code",
    [
        "device = 'cuda' if torch.cuda.is_available() else 'cpu'",
        "model.cuda()",
        "torch.mps.empty_cache()",
        "torch.device('cuda:0')",
        "model.to('mps')",
    ],
)
def test_the_search_for_device_choices_finds_them(code):
    assert uses_of_one_kind(ast.parse(code))


def test_no_other_module_serves_one_kind_of_device_only():
    found = {
        file.relative_to(ROOT).as_posix(): uses
        for file in SOURCES
        if (uses := uses_of_one_kind(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert found == {}
