"""Full, broken and read-only disks: exit code 5, the last checkpoint kept, and on with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lorakit.core import storage
from tests.reliability import checks, corruption, processes, tiny_training
from tests.reliability.tiny_training import DIT

PLACES = [  # each kind of operation of a run, in each place
    ("append", "metrics.jsonl"),
    ("append", "log.txt"),
    ("write", "run/.partial"),
    ("write", "checkpoints/.partial-step-00000020"),
    ("sync", "checkpoints/.partial-step-00000020"),
    ("sync", "metrics.jsonl"),
    ("sync_folder", "checkpoints"),
    ("rename", "checkpoints/step-00000020"),
    ("remove", "checkpoints/step-00000010/optimizer.safetensors"),
    ("write", "samples/"),
    ("rename", "run/adapter.safetensors"),
    ("sync_folder", "run"),
]
REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]
CASES = [(kind, place, errno.ENOSPC) for kind, place in PLACES]
CASES += [(kind, place, code) for kind, place in PLACES[3::3] for code in REFUSALS[1:]]


def refuse(kind: str, place: str, code: int, refused: list[Path]):
    """A disk that refuses an operation in a place, from now on."""

    def operation(name: str, path: Path) -> None:
        if name == kind and place in str(path):
            refused.append(path)
            raise OSError(code, os.strerror(code), str(path))

    return operation


@pytest.mark.parametrize(("kind", "place", "code"), CASES)
def test_a_failed_write_is_exit_code_5_and_loses_nothing(recorded, monkeypatch, kind, place, code):
    training, reference, seen = recorded(DIT, True)
    corruption.laid_out(training, seen, 15)
    refused: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "io_hook", refuse(kind, place, code, refused))
        exit_code, output = training.train()
    assert refused
    assert exit_code == 5, output
    assert os.strerror(code) in output
    assert "remedy:" in output
    assert "Traceback" not in output
    assert 15 in tiny_training.committed(training.run)
    assert checks.finish(training, reference, at_least=15) == []


def test_a_full_device_is_a_disk_error(recorded):
    training, reference, seen = recorded(DIT, True)
    corruption.laid_out(training, seen, 15)
    log = training.run / "log.txt"
    text = log.read_bytes()
    log.unlink()
    log.symlink_to("/dev/full")
    code, output = training.train()
    assert code == 5, output
    assert "No space left on device" in output
    assert "log.txt" in output
    log.unlink()
    log.write_bytes(text)
    assert checks.finish(training, reference, at_least=15) == []


def test_a_file_size_limit_is_a_disk_error(recorded):
    """A real one: the system refuses to let the optimizer's file grow (EFBIG)."""
    training, reference, seen = recorded(DIT, True)
    corruption.laid_out(training, seen, 5)
    code, output = processes.train(training, processes.small_files, 16 << 10)
    assert code == 5, output
    assert "File too large" in output
    assert checks.finish(training, reference, at_least=5) == []


def test_a_real_full_disk_loses_nothing(recorded):
    """A file system of some kilobytes for one process alone: room for two checkpoints, not for three."""
    training, reference, seen = recorded(DIT, True)
    corruption.laid_out(training, seen, 15)
    blocks = [-(-file.stat().st_size // 4096) * 4 for file in training.state.rglob("*") if file.is_file()]
    code, output = processes.train(training, processes.small_disk, training, sum(blocks) + 32)
    if code == processes.NOT_PERMITTED:
        pytest.skip("this system lets nobody mount a file system of their own")
    assert code == 5, output
    assert "No space left on device" in output
    assert tiny_training.committed(training.run) == [10, 15]
    assert checks.finish(training, reference, at_least=15) == []


def test_an_error_of_the_run_is_not_taken_for_one_of_its_lock(tmp_path):
    def fail() -> None:
        with storage.file_lock(tmp_path / "lock") as held:
            assert held
            (tmp_path / "missing").read_bytes()

    with pytest.raises(FileNotFoundError, match="missing"):
        fail()
