"""The cache that runs share: killed while it is written, written by two at once, deleted."""

from __future__ import annotations

import shutil

import pytest

from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.data import tensor_cache
from tests.reliability import checks, instants, processes
from tests.reliability.world import DIT, World


def entries(made: World) -> dict[str, bytes]:
    """The entries that a reader can see."""
    files = made.cache.rglob("*.safetensors")
    return {str(file.relative_to(made.cache)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def filling(recorded):
    """A world, its finished run, its whole cache, and every instant of a first run that fills the cache."""
    made, reference, _ = recorded(DIT, True)
    made.forget()
    assert made.train()[0] == 0
    whole = entries(made)
    made.forget()
    shutil.rmtree(made.cache)
    with instants.recording(made.state) as recorder:
        assert made.train()[0] == 0
    assert made.mismatches(reference) == []
    assert entries(made) == whole
    return made, reference, whole, [i for i in recorder.instants if i.path.startswith("cache")]


def test_61_killed_while_caching_no_torn_entry_is_visible(filling):
    made, _, whole, seen = filling
    assert len(seen) >= 4 * len(whole) > 0
    for instant in instants.distinct(seen):
        instants.lay_out(instant.tree, made.state)
        assert entries(made).items() <= whole.items(), instant


def test_61_killed_while_caching_it_ends_in_the_same_bytes(filling):
    made, reference, whole, seen = filling
    for instant in instants.distinct(seen)[::6]:
        assert checks.resume(made, reference, instant) == []
        assert entries(made) == whole


def test_63_two_runs_that_fill_one_cache_at_once(recorded, tmp_path):
    made, reference, _ = recorded(DIT, True)
    whole = entries(made)
    other = made.copy(tmp_path)
    other.cache.parent.mkdir(exist_ok=True)
    shutil.rmtree(other.cache)
    other.cache.symlink_to(made.cache)
    made.forget()
    shutil.rmtree(made.cache)
    made.cache.mkdir()
    started = [processes.start(one) for one in (made, other)]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0], made.said.read_text()
    assert made.mismatches(reference) == []
    assert other.mismatches(reference) == []
    assert entries(made) == whole


def test_64_a_cache_that_is_deleted_in_the_middle(recorded, monkeypatch):
    """Entries that were read stay in memory; where there are too many for that, the run stops and goes on."""
    made, reference, seen = recorded(DIT, True)
    row = [i for i in seen if i.path.endswith("metrics.jsonl") and i.committed == 10][1]

    def operation(name, path):
        if name == "append" and path.name == "metrics.jsonl":
            shutil.rmtree(made.cache, ignore_errors=True)

    monkeypatch.setattr(storage, "io_hook", operation)
    instants.lay_out(row.tree, made.state)
    assert checks.finish(made, reference, at_least=10) == []
    monkeypatch.setattr(tensor_cache, "MAX_MEMORY_BYTES", 0)
    instants.lay_out(row.tree, made.state)
    code, said = made.train()
    assert code == DataError.exit_code, said
    assert "give the same command again" in said
    monkeypatch.undo()
    assert checks.finish(made, reference, at_least=10) == []
