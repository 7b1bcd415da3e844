"""`lorakit doctor`: what is missing, and what the machine can train."""

from __future__ import annotations

import json
import re

import pytest
import torch

from lorakit.cli import doctor, main
from lorakit.models import device, device_checks
from lorakit.models.device import DeviceInfo

GIB = 2**30


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main.main(["doctor", *words])
    return code, capsys.readouterr().out


@pytest.fixture
def machine(monkeypatch):
    """machine(kind, gib, speed): a machine with this device, whose parts all work."""

    def install(kind: str, gib: float, speed: float, precisions=("bf16", "fp16", "fp32")) -> None:
        label = {"cuda": "CUDA", "xpu": "XPU", "mps": "MPS", "cpu": "CPU"}[kind]
        info = DeviceInfo(torch.device(kind), "a device", label, int(gib * GIB), precisions)
        monkeypatch.setattr(device, "list_devices", lambda: [info])
        monkeypatch.setattr(device, "supported_precisions", lambda _: precisions)
        monkeypatch.setattr(device_checks, "measure_teraflops", lambda *_, **__: speed)
        for check in ("check_8bit_optimizer", "check_quantized_layers", "unused_gpu", "unusable_driver"):
            monkeypatch.setattr(device_checks, check, lambda *_: None)
        monkeypatch.setattr("lorakit.core.platform.total_memory", lambda: 64 * GIB)

    return install


def test_this_machine_is_described_with_a_measured_speed(capsys):
    code, out = run(capsys, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["devices"][-1]["platform"] == "CPU"
    assert set(answer["failures"].values()) == {None}
    assert answer["training"]["teraflops_per_second"] > 0
    assert len(answer["training"]["models"]) >= 10
    assert answer["training"]["estimated_by"]


def test_quick_measures_no_speed(capsys, monkeypatch):
    monkeypatch.setattr(device_checks, "measure_teraflops", None)
    code, out = run(capsys, "--json", "--quick")
    assert code == 0
    assert json.loads(out)["training"]["teraflops_per_second"] is None


def test_a_machine_without_a_gpu_is_told_so_with_the_time_of_a_step(capsys, machine):
    machine("cpu", 32, 0.08)
    code, out = run(capsys)
    assert code == 0
    assert "no GPU: only small models are practical here" in out
    assert "a step of Stable Diffusion 1.5 at 512 px takes about 23 s" in out  # 1.8 TFLOP
    assert re.search(r"embedded: tiny-unet, tiny-dit +64 +yes", out)
    assert re.search(r"Stable Diffusion 1\.5 +512 +yes, but slow", out)
    assert "nothing is missing" in out


@pytest.mark.parametrize(
    ("kind", "gib", "fitting", "other"),
    [
        (
            "cuda",
            6,
            r"Stable Diffusion XL +1024 +yes, with .*stream",
            r"Flux.1 dev +1024 +yes, with .*stream 1",
        ),
        ("xpu", 16, r"Stable Diffusion XL +1024 +yes +\d", r"Flux.1 dev +1024 +yes, with int8"),
        ("mps", 12, r"Stable Diffusion 1.5 +512 +yes +\d", r"Qwen-Image +1024 +no: needs"),
    ],
)
def test_a_gpu_is_described_with_the_models_that_fit(capsys, machine, kind, gib, fitting, other):
    machine(kind, gib, 50.0)
    code, out = run(capsys)
    assert code == 0
    assert f"training on {kind} with {gib} GiB" in out
    assert re.search(fitting, out)
    assert re.search(other, out)
    assert "no GPU" not in out


def test_a_device_without_bf16_says_what_it_computes_in(capsys, machine):
    machine("cuda", 16, 20.0, precisions=("fp16", "fp32"))
    assert "computes in fp16, fp32" in run(capsys)[1]


@pytest.mark.parametrize(
    ("check", "result", "words"),
    [
        ("unused_gpu", "NVIDIA RTX 4070", "uv pip install --torch-backend=auto --reinstall-package torch"),
        ("unusable_driver", "NVIDIA RTX 4070", "update its driver"),
        ("check_8bit_optimizer", "no kernel image", "train with optimizer.name=adamw"),
    ],
)
def test_what_does_not_work_is_a_problem_with_its_remedy(capsys, machine, monkeypatch, check, result, words):
    machine("cpu", 32, 0.1)
    monkeypatch.setattr(device_checks, check, lambda *_: result)
    code, out = run(capsys)
    assert code == 2
    (problem,) = [line for line in out.splitlines() if line.startswith("PROBLEM")]
    assert result in problem
    assert words in problem


def test_each_quantization_that_does_not_work_is_a_problem_with_its_remedy(capsys, machine, monkeypatch):
    machine("cpu", 32, 0.1)
    reasons = {"nf4": "no kernel image", "fp8": "no such type"}
    monkeypatch.setattr(device_checks, "check_quantized_layers", lambda _, name: reasons.get(name))
    code, out = run(capsys)
    assert code == 2
    problems = [line for line in out.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == 2
    for problem, (name, reason) in zip(problems, reasons.items(), strict=True):
        assert f"memory.quantize {name} does not work on this device ({reason})" in problem
        assert "train with memory.quantize=int8" in problem


def test_missing_packages_and_space_are_problems():
    environment = doctor.inspect_environment()
    environment["packages"]["peft"] = None
    environment["free_gib"] = 0.5
    lines = doctor.find_problems(environment)
    assert any("peft is not installed" in line for line in lines)
    assert any("LORAKIT_CACHE" in line for line in lines)
