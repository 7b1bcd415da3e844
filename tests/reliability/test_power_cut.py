"""A replay without unsynced data: SIGKILL keeps it, so only this shows a missing fsync."""

from __future__ import annotations

import pytest

from lorakit.training import checkpoint
from tests.long_tier import IS_LONG
from tests.reliability import checks, instants, power_cut
from tests.reliability.tiny_training import DIT

STEPS_APART = 8  # of the many instants at which only a row was added, every eighth


def cuts(recorded, *, monitored: bool) -> list[instants.Instant]:
    """Every disk that a power cut can leave at any operation of a run of the DiT."""
    training, reference, _ = recorded(DIT, monitored)
    training.delete_run()
    with power_cut.following(training.state) as disk:
        assert training.train()[0] == 0
    assert training.mismatches(reference) == []
    return instants.distinct(disk.cuts, fold=True)


def test_a_power_cut_at_every_operation_ends_in_the_same_bytes(recorded):
    training, reference, _ = recorded(DIT, False)
    found = cuts(recorded, monitored=False)
    rows = sorted({cut.number for cut in found if cut.name == "append"})
    left_out = set(rows) - set(rows[::STEPS_APART])
    found = [cut for cut in found if cut.number not in left_out]
    assert len(found) > 60  # contents that differ only in the log, which nothing reads, count once
    problems = checks.resumes(training, reference, found if IS_LONG else found[::2])
    assert not problems, "\n".join(problems)


def test_a_power_cut_after_the_end_loses_no_row(recorded):
    training, reference, _ = recorded(DIT, True)
    found = [cut for cut in cuts(recorded, monitored=True) if instants.at_the_end(cut)]
    problems = checks.resumes(training, reference, found)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("keep", [1, 2])
def test_commit_and_prune_always_leave_the_last_committed_checkpoint(tmp_path, keep):
    assert checks.commits(tmp_path, keep) == []


def test_committing_the_same_step_again_never_leaves_it_missing(tmp_path):
    """A stop between two steps commits a step that may be committed already."""
    run = tmp_path / "state/run"
    checks.write_steps(run, 1, 2, keep=1)
    with power_cut.following(tmp_path / "state") as disk:
        checkpoint.save_checkpoint(run, checks.make_checkpoint(2), {"format": "pt"})
    for instant in [*instants.distinct(disk.instants), *instants.distinct(disk.cuts)]:
        instants.lay_out(instant.tree, tmp_path / "again")
        latest = checkpoint.latest_valid_checkpoint(tmp_path / "again/run")
        assert latest.checkpoint.step == 2, instant
        assert not latest.problems


def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path):
    assert checks.rewritten(tmp_path) == []


def test_the_disk_forgets_what_was_not_synced(tmp_path):
    """The model itself: content needs an fsync of the file, a name one of the folder."""
    with power_cut.following(tmp_path / "d") as disk:
        (tmp_path / "d/file").write_bytes(b"data")
        disk("look", tmp_path / "d/file")
    found = [cut.tree for cut in disk.cuts]
    for expected in ({}, {"file": b""}, {"file": b"data"}, {"file": bytes(4)}):
        assert expected in found
