"""Non-finite and absurd losses and gradients: they never reach the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lorakit.core import rng, safetensors_header, storage
from lorakit.training import checkpoint, objective, prefetch
from tests.reliability import checks, instants, tiny_training
from tests.reliability.tiny_training import DIT

Poison = Callable[[torch.Tensor], torch.Tensor]


class _BadGradient(torch.autograd.Function):
    """A finite loss whose gradient is infinite."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, float("inf"))


POISONS: dict[str, Poison] = {
    "NaN loss": lambda loss: loss * float("nan"),
    "infinite loss": lambda loss: loss + float("inf"),
    "infinite gradient": _BadGradient.apply,
}


@pytest.fixture
def poison(monkeypatch):
    """poison(kind, steps): the losses of these steps go through it, in every process life."""
    plain_normal = rng.keyed_normal

    def install(change: Poison, steps: set[int]) -> None:
        now = [-1]

        def normal(shape, seed, purpose, *parts):
            now[0] = int(parts[0]) if purpose == "noise" else -1  # one image a step: its position is the step
            return plain_normal(shape, seed, purpose, *parts)

        monkeypatch.setattr(rng, "keyed_normal", normal)
        monkeypatch.setattr(prefetch, "GROUP_BYTES", 0)  # the noise of one step, then its loss
        for kind in (objective.FlowMatching, objective.DDPM):
            plain_loss = kind.loss

            def loss(self, prediction, target, t, plain_loss=plain_loss):
                value = plain_loss(self, prediction, target, t)
                return change(value) if now[0] in steps else value

            monkeypatch.setattr(kind, "loss", loss)

    return install


def at(training, step: int) -> checkpoint.Checkpoint:
    """The checkpoint of one step."""
    return checkpoint.load_checkpoint(checkpoint.step_folder(training.run, step))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit."""
    return safetensors_header.safetensors_bytes(one) == safetensors_header.safetensors_bytes(other)


@pytest.mark.parametrize("base", tiny_training.BASES)
@pytest.mark.parametrize("kind", POISONS)
def test_a_bad_step_leaves_weights_and_optimizer_as_they_were(recorded, poison, kind, base):
    training, _, _ = recorded(base, False)
    training.delete_run()
    poison(POISONS[kind], {7})
    code, output = training.train("train.save_every=1", "train.keep_optimizer_states=20")
    assert code == 0, output
    before, after = at(training, 7), at(training, 8)
    assert same(before.adapter, after.adapter)
    assert same(before.optimizer, after.optimizer)
    assert not same(after.adapter, at(training, 9).adapter)
    assert (before.state["skipped_steps"], after.state["skipped_steps"]) == ([], [7])
    line = next(line for line in output.splitlines() if line.startswith("step 7:"))
    assert "step skipped" in line
    assert ".png" in line


def test_a_run_with_bad_steps_is_resumed_to_the_same_bytes(recorded, poison):
    training, _, _ = recorded(DIT, False)
    training.delete_run()
    poison(POISONS["NaN loss"], {6, 12, 17})
    with instants.recording(training.state) as recorder:
        assert training.train()[0] == 0
    reference = training.finished()
    assert at(training, 20).state["skipped_steps"] == [6, 12, 17]
    crashed = [i for i in recorder.instants if i.name == "append" and not instants.at_the_end(i)]
    found = checks.resumes(training, reference, crashed[1::4])
    assert not found, "\n".join(found)
    assert at(training, 20).state["skipped_steps"] == [6, 12, 17]


def test_too_many_bad_steps_end_the_run_with_the_last_good_checkpoint(recorded, poison, monkeypatch):
    training, _, _ = recorded(DIT, False)
    training.delete_run()
    with monkeypatch.context():
        poison(POISONS["infinite loss"], set(range(6, 20)))
        code, output = training.train()
        assert code == 6
        assert "11 steps gave non-finite numbers" in output
        assert "remedy:" in output
        assert tiny_training.committed(training.run) == [10, 15]
        assert same(at(training, 10).adapter, at(training, 15).adapter)
        assert all(tensor.isfinite().all() for tensor in at(training, 15).adapter.values())
        assert not (training.run / "adapter.safetensors").exists()
        assert training.train()[0] == 6  # the same command comes to the same end
    monkeypatch.undo()
    code, output = training.train()  # without the cause it is resumed
    assert code == 0, output
    assert training.resumed_from() == 15


def test_a_loss_spike_is_clipped(recorded, poison):
    training, _, _ = recorded(DIT, False)
    training.delete_run()
    poison(lambda loss: loss * 1e6, {7})
    assert training.train("train.save_every=1", "train.keep_optimizer_states=20")[0] == 0
    row = next(row for row in storage.read_jsonl(training.run / "metrics.jsonl") if row["step"] == 8)
    assert row["grad_norm"] > 1e3
    rate = row["lr"]
    for name, before in at(training, 7).adapter.items():
        assert (at(training, 8).adapter[name] - before).abs().max() < 5 * rate
    assert at(training, 20).state["skipped_steps"] == []


def test_zero_gradients_change_nothing(recorded, poison):
    training, _, _ = recorded(DIT, False)
    training.delete_run()
    poison(lambda loss: loss * 0, set(range(20)))
    assert training.train()[0] == 0
    assert at(training, 20).state["skipped_steps"] == []
    assert not any(t.any() for name, t in at(training, 20).adapter.items() if "lora_B" in name)
