"""Acceleration of a run: what is chosen, what is refused, and that a resumed run keeps it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lorakit.config import recipe
from lorakit.core.errors import ConfigError
from lorakit.models.acceleration import compiled, kernels
from lorakit.models.acceleration.settings import AccelerationSettings, Kernels
from lorakit.models.memory import MemorySettings
from lorakit.training import acceleration_plan
from lorakit.training.acceleration_plan import RunFacts
from lorakit.training.run_folder import RunFolder
from tests import runs

FACTS = RunFacts(torch.device("cuda"), 1000, 3, text_varies=False, trains_text=False, num_blocks=12)
CPU = dataclasses.replace(FACTS, device=torch.device("cpu"))


@pytest.fixture
def make_recipe(tmp_path):
    def make(**train: object) -> recipe.Recipe:
        file = runs.make_recipe(tmp_path / "r.json", "tiny-dit", tmp_path, tmp_path / "run", train=train)
        return recipe.load_recipe(file)

    return make


@pytest.fixture
def compiler(monkeypatch):
    """A machine on which compiling is possible, or not, for the reason that is passed."""

    def install(problem: str | None) -> None:
        monkeypatch.setattr(compiled, "compile_problem", lambda device: problem)

    install(None)
    return install


def test_a_gpu_compiles_and_records_graphs_by_itself(make_recipe, compiler):
    decision = acceleration_plan.decide(make_recipe(), FACTS)
    assert decision.settings == AccelerationSettings(compile=True, cuda_graph=True, text_multiple=64)
    assert decision.reasons == ()


def test_a_cpu_stays_plain_without_a_word(make_recipe, compiler):
    decision = acceleration_plan.decide(make_recipe(), CPU)
    assert decision.settings == AccelerationSettings()
    assert decision.reasons == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_shapes": 9}, "9 shapes"),
        ({"text_varies": True}, "captions of each length"),
        ({"steps": 100}, "fewer than 500 steps"),
        ({"num_blocks": 0}, "no repeated blocks"),
    ],
)
def test_automatic_compiling_is_off_for_one_named_reason(make_recipe, compiler, changes, words):
    decision = acceleration_plan.decide(make_recipe(), dataclasses.replace(FACTS, **changes))
    assert not decision.settings.compile
    (reason,) = [line for line in decision.reasons if line.startswith("blocks are not compiled: ")]
    assert words in reason
    assert "\n" not in reason


def test_a_missing_compiler_turns_it_off_or_is_refused(make_recipe, compiler):
    """By itself it says so in one line; a recipe that asks for it is refused before the first step."""
    compiler("the package triton is not installed (on Windows it is the package triton-windows)")
    decision = acceleration_plan.decide(make_recipe(), FACTS)
    assert not decision.settings.compile
    assert "triton-windows" in decision.reasons[0]
    with pytest.raises(ConfigError, match="triton-windows") as caught:
        acceleration_plan.decide(make_recipe(compile=True), FACTS)
    assert "train.compile=false" in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (CPU, "this device"),
        (dataclasses.replace(FACTS, trains_text=True), "text encoders are trained"),
        (dataclasses.replace(FACTS, memory=MemorySettings(stream=0.5)), "host memory"),
    ],
)
def test_graphs_that_are_impossible_are_refused_with_the_reason(make_recipe, compiler, facts, words):
    with pytest.raises(ConfigError, match=words) as caught:
        acceleration_plan.decide(make_recipe(cuda_graph=True), facts)
    assert "train.cuda_graph=false" in str(caught.value)
    assert not acceleration_plan.decide(make_recipe(), facts).settings.cuda_graph


def test_kernels_are_measured_on_accelerators_or_when_asked_for(make_recipe):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert acceleration_plan.measures_kernels(make_recipe(), gpu)
    assert not acceleration_plan.measures_kernels(make_recipe(), cpu)
    assert acceleration_plan.measures_kernels(make_recipe(kernels="measure"), cpu)
    assert not acceleration_plan.measures_kernels(make_recipe(kernels="default"), gpu)
    assert not acceleration_plan.measures_kernels(make_recipe(deterministic=True), gpu)


def test_cuda_graphs_may_be_switched_on_a_resumed_run_and_compiling_may_not(make_recipe):
    settings = recipe.training_settings(make_recipe())
    assert "train.cuda_graph" not in settings
    assert {"train.compile", "train.kernels"} <= settings.keys()


def test_settings_survive_their_record():
    settings = AccelerationSettings(
        compile=True, kernels=Kernels("flash", channels_last=True), text_multiple=8
    )
    assert AccelerationSettings.from_json(settings.to_json()) == settings


def _make(folder: Path, name: str, **train: object) -> Path:
    data = folder / "data"
    if not data.exists():
        runs.make_dataset(data, 3)
    settings = {"steps": 4, "save_every": 2, "batch_size": 1, "precision": "fp32"}
    return runs.make_recipe(folder / f"{name}.json", "tiny-dit", data, folder / name, train=settings | train)


@pytest.mark.skipif(
    compiled.compile_problem(torch.device("cpu")) is not None, reason="no C++ compiler is installed"
)
def test_a_compiled_run_resumes_to_the_same_bytes(tmp_path):
    """Killed after its first checkpoint; its losses are those of a plain run, up to rounding."""
    whole, killed = (_make(tmp_path, name, compile=True) for name in ("whole", "killed"))
    runs.train(whole)
    with runs.killed_at(3):
        runs.train(killed)
    runs.train(killed)
    adapters = [tmp_path / name / "adapter.safetensors" for name in ("whole", "killed")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert RunFolder(tmp_path / "whole").record()["acceleration"]["settings"]["compile"] is True
    runs.train(_make(tmp_path, "plain"))
    losses = [[row["loss"] for row in RunFolder(tmp_path / name).metrics()] for name in ("whole", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_measured_kernels_are_recorded_and_kept_by_a_resumed_run(tmp_path, monkeypatch):
    file = _make(tmp_path, "run", kernels="measure")
    with runs.killed_at(3):
        runs.train(file)
    run = RunFolder(tmp_path / "run")
    record = run.record()["acceleration"]
    assert [row["attention"] for row in record["measured"]] == ["default", "math"]
    assert all(row["seconds"] > 0 for row in record["measured"])
    choice = record["settings"]["kernels"]
    choice["attention"] = "math" if choice["attention"] == "default" else "default"
    run.update_record(acceleration=record)
    used, in_force = [], kernels.kernels_in_force
    monkeypatch.setattr(kernels, "kernels_in_force", lambda k, n: used.append(k) or in_force(k, n))
    runs.train(file)
    assert used == [Kernels(choice["attention"])], "neither measured nor chosen again"
