"""Training in fp16 with loss scaling: it learns as fp32 does, resumes exactly, and survives overflows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorakit.core import storage
from lorakit.core.errors import ConfigError, NumericError
from lorakit.models import device as devices
from lorakit.models.families.family import Family
from lorakit.training import checkpoint, loss_scale
from lorakit.training.step import TrainingStep
from tests import runs, tiny
from tests.long_tier import some_long

BASES = ("sd15", "sd3-no-t5", "sdxl")
LIMIT = 2.0**13
"""Loss scale above which the injected overflow occurs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 4)


def make(folder: Path, data: Path, base: str = "sd3-no-t5", **train: object) -> Path:
    settings = {
        "steps": 8,
        "batch_size": 1,
        "save_every": 2,
        "keep_optimizer_states": 20,
        "precision": "fp16",
    } | train
    return runs.make_recipe(
        folder / "r.yaml",
        tiny.tiny_folder(base),
        data,
        folder / "run",
        adapter={"rank": 2, "alpha": 2},
        optimizer={"lr": 1e-2},
        train=settings,
    )


def rows(run: Path) -> list[dict]:
    return [row for row in storage.read_jsonl(run / "metrics.jsonl") if "loss" in row]


def at(run: Path, step: int) -> checkpoint.Checkpoint:
    return checkpoint.load_checkpoint(checkpoint.step_folder(run, step))


class _Overflow(torch.autograd.Function):
    """A number whose gradient is infinite above a limit, as it is in float16."""

    @staticmethod
    def forward(ctx, value, limit):
        ctx.limit = limit
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.where(grad.abs() > ctx.limit, torch.inf, grad), None


@pytest.fixture
def overflow(monkeypatch) -> Callable[[set[int], float], None]:
    """overflow(steps, limit): gradients of these steps overflow while the loss scale is above the limit."""
    plain = TrainingStep.sample_losses

    def install(steps: set[int], limit: float = LIMIT) -> None:
        def losses(self, samples, uniforms):
            values = plain(self, samples, uniforms)
            return _Overflow.apply(values, limit) if self.state.step in steps else values

        monkeypatch.setattr(TrainingStep, "sample_losses", losses)

    return install


@pytest.mark.parametrize("base", BASES)
def test_a_run_in_fp16_learns_as_one_in_fp32(base, data, tmp_path):
    half = runs.train(make(tmp_path / "fp16", data, base))
    full = runs.train(make(tmp_path / "fp32", data, base, precision="fp32"))
    losses = [[row["loss"] for row in rows(run)] for run in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert losses[0] != losses[1]
    adapters = [storage.read_safetensors(run / "adapter.safetensors") for run in (half, full)]
    difference = torch.cat([(adapters[0][key] - adapters[1][key]).flatten() for key in adapters[0]])
    assert difference.norm() < 0.2 * torch.cat([t.flatten() for t in adapters[1].values()]).norm()
    assert {tensor.dtype for tensor in adapters[0].values()} == {torch.float32}
    assert [row["loss_scale"] for row in rows(half)] == [loss_scale.INITIAL_SCALE] * 8
    assert "loss_scale" not in rows(full)[0]


def test_a_checkpoint_of_another_precision_has_no_loss_scale(data, tmp_path):
    run = runs.train(make(tmp_path, data, precision="bf16", steps=2))
    assert at(run, 2).state.keys() == {"skipped_steps", "micro_batch_size"}


@pytest.mark.parametrize(("killed", "overflows"), [(3, set()), (5, {2, 4}), (7, {1, 6})])
def test_a_killed_run_is_resumed_to_the_same_bytes(killed, overflows, data, tmp_path, overflow, monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
    overflow(overflows)
    whole, resumed = make(tmp_path / "whole", data), make(tmp_path / "resumed", data)
    runs.train(whole)
    with runs.killed_at(killed):
        runs.train(resumed)
    runs.train(resumed)
    for name in ("adapter.safetensors", "checkpoints/step-00000008/optimizer.safetensors"):
        files = [file.parent / "run" / name for file in (whole, resumed)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    scales = [[row["loss_scale"] for row in rows(file.parent / "run")] for file in (whole, resumed)]
    assert scales[0] == scales[1]
    assert len(set(scales[0])) > 1


@pytest.mark.parametrize("step", [0, 3, 7])
def test_an_overflow_shrinks_the_scale_and_loses_no_sample(step, data, tmp_path, overflow):
    plain = runs.train(make(tmp_path / "plain", data, save_every=1))
    overflow({step})
    run = runs.train(make(tmp_path / "run", data, save_every=1))
    scales = [row["loss_scale"] for row in rows(run)]
    assert scales == [loss_scale.INITIAL_SCALE] * step + [LIMIT] * (8 - step)
    assert at(run, 8).state["skipped_steps"] == []
    assert [row["loss"] for row in rows(run)] == pytest.approx([row["loss"] for row in rows(plain)], rel=1e-3)
    before = at(run, step).adapter if step else None
    if before:  # up to the overflow the runs are the same, byte for byte
        assert all(torch.equal(value, at(plain, step).adapter[key]) for key, value in before.items())
    assert f"step {step}: gradients overflow in fp16" in (run / "log.txt").read_text()


def test_an_overflow_changes_no_weight_until_the_step_succeeds(data, tmp_path, overflow, monkeypatch):
    overflow({2})
    seen: list[list[torch.Tensor]] = []
    plain = TrainingStep.reduce_and_clip

    def watch(self, loss):
        result = plain(self, loss)
        if self.state.step == 2:
            seen.append([parameter.detach().clone() for _, parameter in self.parameters.named])
        return result

    monkeypatch.setattr(TrainingStep, "reduce_and_clip", watch)
    runs.train(make(tmp_path, data, steps=3))
    assert len(seen) == 4  # 2**16, 2**15, 2**14 overflow, 2**13 does not
    assert all(
        torch.equal(one, first) for other in seen[1:] for one, first in zip(other, seen[0], strict=True)
    )


@pytest.mark.parametrize("growth", [2, 3, 5])
def test_the_scale_grows_after_steps_without_overflow(growth, data, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", growth)
    run = runs.train(make(tmp_path, data))
    expected = [loss_scale.INITIAL_SCALE * 2 ** ((step + 1) // growth) for step in range(8)]
    assert [row["loss_scale"] for row in rows(run)] == expected
    assert at(run, 8).state["loss_scale"] == {"value": expected[-1], "good_steps": 8 % growth}


def test_the_scale_stays_between_its_limits():
    scale = loss_scale.LossScale(value=2.0)
    assert scale.shrink()
    assert not scale.shrink()
    assert scale.value == loss_scale.MIN_SCALE
    scale = loss_scale.LossScale(value=loss_scale.MAX_SCALE)
    for _ in range(loss_scale.GROWTH_STEPS):
        scale.count_good_step()
    assert scale.value == loss_scale.MAX_SCALE


@pytest.mark.parametrize(
    "kind", some_long(["NaN loss", "infinite loss", "gradient infinite at any scale"], "NaN loss")
)
def test_numbers_that_no_scale_makes_finite_are_skipped_and_counted(kind, data, tmp_path, monkeypatch):
    plain = TrainingStep.sample_losses

    def poisoned(self, samples, uniforms):
        values = plain(self, samples, uniforms)
        if self.state.step not in bad:
            return values
        if kind == "gradient infinite at any scale":
            return _Overflow.apply(values, 0.0)
        return values * float("nan") if kind == "NaN loss" else values + float("inf")

    monkeypatch.setattr(TrainingStep, "sample_losses", poisoned)
    bad = {3}
    run = runs.train(make(tmp_path / "once", data, save_every=1))
    assert at(run, 8).state["skipped_steps"] == [3]
    assert all(torch.equal(value, at(run, 3).adapter[key]) for key, value in at(run, 4).adapter.items())
    assert {row["loss_scale"] for row in rows(run)} == {loss_scale.INITIAL_SCALE}
    bad = set(range(30))
    with pytest.raises(NumericError, match="11 steps gave non-finite") as caught:
        runs.train(make(tmp_path / "always", data, steps=20))
    assert "train.precision=bf16" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("supported", "precision", "remedy"),
    [
        (("fp16", "fp32"), "bf16", "train.precision=fp16"),
        (("fp32",), "bf16", "train.precision=fp32"),
        (("fp32",), "fp16", "train.precision=fp32"),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused_before_any_work(
    supported, precision, remedy, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices, "supported_precisions", lambda device: supported)
    file = make(tmp_path, data, precision=precision)
    with pytest.raises(ConfigError, match="cannot compute in") as caught:
        runs.train(file)
    assert remedy in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert runs.train(file, remedy, "train.steps=1").exists()


def test_the_recipes_of_the_quickstart_run_on_every_device():
    from lorakit.config.recipe import builtin_recipes_folder, load_recipe

    for file in sorted(builtin_recipes_folder().glob("quickstart-*.yaml")):
        assert load_recipe(file, ["dataset=d", "out=o"]).train.precision == "fp32"


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantized_base_is_trained_in_fp16(quantize, data, tmp_path):
    file = make(tmp_path, data, steps=3)
    run = runs.train(file, f"memory={{quantize: {quantize}}}")
    assert all(row["loss"] > 0 for row in rows(run))
    assert at(run, 3).state["skipped_steps"] == []


@pytest.mark.parametrize("overflowing", [1, 2])
def test_texts_that_overflow_in_half_precision_are_encoded_in_float32(
    overflowing, data, tmp_path, monkeypatch
):
    """Only those: the others have the embeddings that they have without them."""
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(devices, "inference_dtype", lambda device: torch.float16)
    plain, dtypes = Family.encode_text, {}

    def encode(self, pipe, captions, size=None, images=None):
        embeddings, dtype = plain(self, pipe, captions, size, images), pipe.text_encoder.dtype
        if dtype == torch.float16 and captions[0][-1] in "0123"[:overflowing]:
            embeddings[0]["prompt_embeds"][0, 0] = float("inf")
        else:
            dtypes[captions[0][-1]] = dtype
        return embeddings

    monkeypatch.setattr(Family, "encode_text", encode)
    run = runs.train(make(tmp_path, data, steps=1))
    names = "0123"
    assert {name: dtypes[name] for name in names[:overflowing]} == dict.fromkeys(
        names[:overflowing], torch.float32
    )
    assert {name: dtypes[name] for name in names[overflowing:]} == dict.fromkeys(
        names[overflowing:], torch.float16
    )
    assert f"{overflowing} texts overflow in half precision" in (run / "log.txt").read_text()
