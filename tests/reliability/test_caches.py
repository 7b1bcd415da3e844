"""The cache that runs share: killed while it is written, written by two at once, deleted."""

from __future__ import annotations

import shutil

import pytest

from lorakit.core import storage
from lorakit.data import tensor_shards
from tests.reliability import checks, instants, processes
from tests.reliability.tiny_training import DIT, TinyTraining


def entries(training: TinyTraining) -> dict[str, object]:
    """The entries that a reader can see."""
    found: dict[str, object] = {}
    for path in training.cache.rglob("*.safetensors"):
        if path.parent.name in ("text", "latents"):
            shard = tensor_shards.Shard(path)
            assert not shard.damaged_rows()
            for row, key in enumerate(shard.keys):
                found[key] = [(name, value.tolist()) for name, value in shard.tensors(row).items()]
    return found


@pytest.fixture(scope="module")
def filling(recorded):
    """A training, its finished run, its cache, and every instant of a first run that fills the cache."""
    training, reference, _ = recorded(DIT, True)
    training.delete_run()
    assert training.train()[0] == 0
    whole = entries(training)
    training.delete_run()
    shutil.rmtree(training.cache)
    with instants.recording(training.state) as recorder:
        assert training.train()[0] == 0
    assert training.mismatches(reference) == []
    assert entries(training) == whole
    return training, reference, whole, [i for i in recorder.instants if i.path.startswith("cache")]


def test_a_kill_while_caching_leaves_no_torn_entry(filling):
    training, _, whole, seen = filling
    assert whole
    assert len(seen) >= 8
    for instant in instants.distinct(seen):
        instants.lay_out(instant.tree, training.state)
        assert entries(training).items() <= whole.items(), instant


def test_a_run_killed_while_caching_ends_in_the_same_bytes(filling):
    training, reference, whole, seen = filling
    for instant in instants.distinct(seen)[::6]:
        assert checks.resume(training, reference, instant) == []
        assert entries(training) == whole


def test_two_runs_can_fill_one_cache_at_once(recorded, tmp_path):
    training, reference, _ = recorded(DIT, True)
    whole = entries(training)
    other = training.copy(tmp_path)
    other.cache.parent.mkdir(exist_ok=True)
    shutil.rmtree(other.cache)
    other.cache.symlink_to(training.cache)
    training.delete_run()
    shutil.rmtree(training.cache)
    training.cache.mkdir()
    started = [processes.start(one) for one in (training, other)]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0], training.output.read_text()
    assert training.mismatches(reference) == []
    assert other.mismatches(reference) == []
    assert entries(training) == whole


def test_a_cache_deleted_during_a_run_costs_nothing(recorded, monkeypatch):
    """Shards that are open stay readable."""
    training, reference, seen = recorded(DIT, True)
    row = [i for i in seen if i.path.endswith("metrics.jsonl") and i.committed == 10][1]

    def operation(name, path):
        if name == "append" and path.name == "metrics.jsonl":
            shutil.rmtree(training.cache, ignore_errors=True)

    monkeypatch.setattr(storage, "io_hook", operation)
    instants.lay_out(row.tree, training.state)
    assert checks.finish(training, reference, at_least=10) == []
