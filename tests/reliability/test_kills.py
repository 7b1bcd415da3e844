"""Real processes, really killed."""

from __future__ import annotations

import random
import time

import pytest

from lorakit.core import storage
from tests.long_tier import some_long
from tests.reliability import instants, kills, processes, tiny_training
from tests.reliability.tiny_training import DIT

KILLS = 20
IN_A_ROW = 5


@pytest.mark.parametrize("base", some_long(tiny_training.BASES, tiny_training.DIT))
def test_five_kills_in_a_row_at_random_moments_end_in_the_same_bytes(recorded, base):
    """20 kills in 4 runs, each killed 5 times before it may finish."""
    training, reference, _ = recorded(base, True)
    seed = time.time_ns()
    draw = random.Random(seed)
    span = kills.life(training)
    for _ in range(KILLS // IN_A_ROW // len(tiny_training.BASES)):
        done = kills.chain(training, reference, IN_A_ROW, draw, span)
        assert not done.problems, (seed, done.moments, done.problems)
        assert done.in_a_row == IN_A_ROW


def test_a_killed_process_leaves_just_the_recorded_instant(recorded):
    """Every twelfth operation: `test_crashes` restores the same disk that a SIGKILL leaves."""
    training, _, seen = recorded(DIT, True)
    for instant in seen[:-1:12]:
        training.delete_run()
        storage.remove_partial_files(training.state, owned="cache")  # of the kill before
        code, output = processes.train(training, processes.kill_before, training.state, instant.number)
        assert code == -9, output
        assert instants.plain(instants.capture(training.state)) == instants.plain(instant.tree), instant
