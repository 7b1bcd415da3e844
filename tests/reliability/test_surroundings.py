"""What the machine around a run may do: close the terminal, turn the clock, be short of files."""

from __future__ import annotations

import random
import time

from tests.reliability import checks, processes
from tests.reliability.world import DIT


def test_84_nobody_reads_what_is_printed_and_it_goes_on(recorded):
    made, reference, _ = recorded(DIT, True)
    made.forget()
    code, _ = processes.train(made, processes.unread)
    assert code == 0
    assert made.mismatches(reference) == []


def test_84_a_closed_terminal_does_not_stop_it(recorded):
    made, reference, _ = recorded(DIT, True)
    made.forget()
    code, _ = processes.train(made, processes.hung_up)
    assert code == 0
    assert made.mismatches(reference) == []


def test_84_the_exit_code_is_told_though_nobody_reads_the_error(recorded):
    made, reference, _ = recorded(DIT, True)
    made.forget()
    code, _ = processes.train(made, processes.unread_and_terminated)
    assert code == 143
    assert checks.finish(made, reference) == []


def test_89_a_clock_that_jumps_changes_nothing(recorded, monkeypatch):
    made, reference, _ = recorded(DIT, True)
    made.forget()
    draw = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: draw.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: draw.randrange(1 << 62))
    assert made.train()[0] == 0
    assert made.mismatches(reference) == []


def test_90_with_64_open_files_and_no_shared_memory(recorded):
    made, reference, _ = recorded(DIT, True)
    made.forget()
    code, said = processes.train(made, processes.short_of_everything, 64)
    assert code == 0, said
    assert made.mismatches(reference) == []


def test_90_with_too_few_open_files_the_error_says_so(recorded):
    made, reference, _ = recorded(DIT, True)
    made.forget()
    code, said = processes.train(made, processes.out_of_files)
    assert code == 5, said
    assert "ulimit -n" in said
    assert checks.finish(made, reference) == []
