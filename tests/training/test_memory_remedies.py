"""The printed remedies for too little memory: each is applied to the recipe, and the estimate shrinks."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from lorakit.core.errors import MemoryLimitError
from lorakit.models import families, memory
from lorakit.models.memory import MemorySettings
from lorakit.planner.demand import RunDemand
from lorakit.planner.footprint import Footprint
from lorakit.planner.meter import PassCount
from lorakit.planner.network_count import BlockCount, NetworkCount
from lorakit.planner.weights import WeightCount
from lorakit.training import memory_remedies
from lorakit.training.memory_remedies import Situation
from lorakit.training.step import TrainingStep
from tests import runs, tiny
from tests.long_tier import some_long


class _Estimated(Exception):
    """Ends a training before its first step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 3)


def session_before_step_1(monkeypatch, file, *overrides, result):
    """Return `result(step)` for the training step of a run that ends before step 1."""
    results = []

    def stop(self):
        results.append(result(self))
        raise _Estimated

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "try_largest_batch", stop)
        with pytest.raises(_Estimated):
            runs.train(file, *overrides)
    return results[0]


def footprint(step: TrainingStep) -> Footprint:
    return memory_remedies.session_situation(step.session).footprint


def error_and_footprint(step: TrainingStep) -> tuple[MemoryLimitError, Footprint]:
    return memory_remedies.memory_limit_error(step.session, 0, "no memory"), footprint(step)


def limit_error(monkeypatch, file, *overrides) -> tuple[MemoryLimitError, Footprint]:
    """Return the error of a training whose first step does not fit, and the estimate of its memory."""
    return session_before_step_1(monkeypatch, file, *overrides, result=error_and_footprint)


def printed_remedies(error: MemoryLimitError) -> list[list[str]]:
    """Return the overrides of each remedy as they stand in the message."""
    text = str(error).partition("remedy: ")[2]
    return [re.findall(r"[a-z_.]+=[^\s;]+", part) for part in text.split("; or ") if "=" in part]


RECIPES = {
    "U-Net": ("sd15", ["adapter.rank_pattern={to_q: 2}"]),
    "U-Net, checkpointing, lokr": (
        "sd15", ["memory.gradient_checkpointing=1", "adapter.type=lokr", "adapter.rank=2"]
    ),
    "U-Net, int8, batch of 8": ("sd15", ["memory.quantize=int8", "train.batch_size=8"]),
    "U-Net, text encoder, samples": (
        "sd15", ["memory={quantize: nf4}", "adapter.text_encoder=true", "samples.prompts=PROMPTS"]
    ),
    "U-Net, oft": ("sd15", ["adapter={type: oft, rank: 8, alpha: 16}", "memory.gradient_checkpointing=1"]),
    "DiT, adamw, rank 1": ("sd3", ["optimizer.name=adamw", "adapter.rank=1", "resolution=96"]),
    "DiT, all in force": (
        "sd3",
        [
            "memory={quantize: nf4, gradient_checkpointing: 1}",
            "adapter.rank=1",
            "resolution=16",
            "train.precision=bf16",
        ],
    ),
    "DiT, pissa": ("flux1-schnell", ["adapter.init=pissa", "memory.gradient_checkpointing=1"]),
    "images on a base for videos": ("wan", ["frames=9", "adapter.rank=1"]),
}  # fmt: skip


SHORT = ("U-Net", "U-Net, text encoder, samples", "DiT, adamw, rank 1", "DiT, all in force",
         "images on a base for videos")  # fmt: skip


@pytest.mark.parametrize("name", some_long(RECIPES, *SHORT))
def test_every_printed_remedy_is_accepted_and_shrinks_the_memory(data, tmp_path, monkeypatch, name):
    base, overrides = RECIPES[name]
    prompts = str(runs.make_prompts(tmp_path / "p.jsonl"))
    overrides = [override.replace("PROMPTS", prompts) for override in overrides]
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder(base), data, tmp_path / "run")
    error, before = limit_error(monkeypatch, file, *overrides)
    remedies = printed_remedies(error)
    assert all(remedies)
    for number, remedy in enumerate(remedies):
        changes = [*overrides, f"out={tmp_path / str(number)}", *remedy]
        after = session_before_step_1(monkeypatch, file, *changes, result=footprint)
        assert after.total < before.total, (remedy, before, after)
        assert not any(override in overrides for override in remedy)
    keys = {override.partition("=")[0] for remedy in remedies for override in remedy}
    text = str(overrides)
    assert "nf4" not in text or "memory.quantize" not in keys
    assert ("memory.gradient_checkpointing" in keys) == ("gradient_checkpointing" not in text)
    assert ("resolution" in keys) == ("resolution=16" not in text)
    assert "frames" not in keys  # no data has more than one
    assert "train.batch_size" not in keys  # the error is about one image at a time


def test_nothing_is_offered_when_everything_is_in_force(data, tmp_path, monkeypatch):
    base, overrides = RECIPES["DiT, all in force"]
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder(base), data, tmp_path / "run")
    error, _ = limit_error(monkeypatch, file, *overrides)
    assert "no setting of this recipe needs less memory" in str(error)
    assert printed_remedies(error) == []


@pytest.mark.parametrize(("used", "frames"), [(17, 9), (9, 5), (5, 1), (1, None)])
def test_fewer_frames_are_offered_for_the_longest_video_that_is_used(used, frames):
    pipe = tiny.tiny_pipeline("wan")
    items = [SimpleNamespace(frame_indices=range(count)) for count in (1, used)]
    family = families.get_family("wan")
    session = SimpleNamespace(family=family, pipe=pipe, train_set=SimpleNamespace(items=items))
    rest = BlockCount("", 1, WeightCount(), PassCount(saved_bytes=1000))
    before = Situation(RunDemand(NetworkCount(rest, (), trained=0, itemsize=4)), MemorySettings())
    remedies = list(memory_remedies._frames(session, before))
    assert [overrides for overrides, _ in remedies] == ([(f"frames={frames}",)] if frames else [])
    for _, after in remedies:
        share = family.latent_shape(pipe, 64, 64, frames)[1] / family.latent_shape(pipe, 64, 64, used)[1]
        assert after.footprint.activations == int(1000 * share)


@pytest.mark.parametrize(("method", "alpha"), [("lora", 8.0), ("rslora", 8 * 2**0.5), ("loha", 8.0)])
def test_a_smaller_rank_keeps_the_scale_of_the_adapter(data, tmp_path, monkeypatch, method, alpha):
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    changes = [f"adapter.type={method}", "adapter.rank=8", "adapter.alpha=16"]
    rank, scale = session_before_step_1(
        monkeypatch,
        file,
        *changes,
        result=lambda s: next(
            r.overrides
            for r in memory_remedies.find_remedies(s.session, memory_remedies.session_situation(s.session))
            if r.overrides[0].startswith("adapter.rank")
        ),
    )
    assert rank == "adapter.rank=4"
    assert float(scale.partition("=")[2]) == pytest.approx(alpha)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
    ids=lambda error: str(error)[-30:],
)
def test_the_micro_batch_is_split_whatever_way_memory_runs_out(data, tmp_path, monkeypatch, error):
    plain, tried = TrainingStep.sample_losses, []

    def sample_losses(self, samples, uniforms):
        tried.append(len(samples))
        if len(samples) > 1:
            raise error
        return plain(self, samples, uniforms)

    monkeypatch.setattr(TrainingStep, "sample_losses", sample_losses)
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    run = runs.train(file, "train.steps=1")
    assert tried[:2] == [2, 1]
    assert "out of memory with 2 images at once, continuing with 1" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    "error", [MemoryError("no"), torch.OutOfMemoryError("no"), RuntimeError("bad_alloc")]
)
def test_memory_that_runs_out_while_loading_has_its_own_exit_code(data, tmp_path, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr("lorakit.training.setup.load_trained_components", load)
    file = runs.make_recipe(tmp_path / "r.yaml", tiny.tiny_folder("sd15"), data, tmp_path / "run")
    with pytest.raises(MemoryLimitError) as caught:
        runs.train(file)
    assert caught.value.exit_code == 4
    assert "outside of a step" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("The size of tensor a must match"), ValueError("out of memory"), OSError(2, "absent")],
)
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    assert not memory.is_out_of_memory(error)
    assert memory.is_out_of_memory(OSError(12, "Cannot allocate memory"))
