"""Faults of the machine around a run: a closed terminal, a clock that jumps, too few open files."""

from __future__ import annotations

import random
import time

from tests.reliability import checks, processes
from tests.reliability.tiny_training import DIT


def test_a_closed_output_does_not_stop_training(recorded):
    training, reference, _ = recorded(DIT, True)
    training.delete_run()
    code, _ = processes.train(training, processes.unread)
    assert code == 0
    assert training.mismatches(reference) == []


def test_a_closed_terminal_does_not_stop_training(recorded):
    training, reference, _ = recorded(DIT, True)
    training.delete_run()
    code, _ = processes.train(training, processes.hung_up)
    assert code == 0
    assert training.mismatches(reference) == []


def test_the_exit_code_is_right_even_if_nobody_reads_the_error(recorded):
    training, reference, _ = recorded(DIT, True)
    training.delete_run()
    code, _ = processes.train(training, processes.unread_and_terminated)
    assert code == 143
    assert checks.finish(training, reference) == []


def test_a_clock_that_jumps_changes_nothing(recorded, monkeypatch):
    training, reference, _ = recorded(DIT, True)
    training.delete_run()
    draw = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: draw.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: draw.randrange(1 << 62))
    assert training.train()[0] == 0
    assert training.mismatches(reference) == []


def test_training_works_with_64_open_files_and_no_shared_memory(recorded):
    training, reference, _ = recorded(DIT, True)
    training.delete_run()
    code, output = processes.train(training, processes.short_of_everything, 64)
    assert code == 0, output
    assert training.mismatches(reference) == []


def test_with_too_few_open_files_the_error_says_so(recorded):
    training, reference, _ = recorded(DIT, True)
    training.delete_run()
    code, output = processes.train(training, processes.out_of_files)
    assert code == 5, output
    assert "ulimit -n" in output
    assert checks.finish(training, reference) == []
