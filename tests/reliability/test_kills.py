"""Real processes, really killed."""

from __future__ import annotations

import random
import time

import pytest

from tests.reliability import instants, kills, processes, world
from tests.reliability.world import DIT

KILLS = 20
IN_A_ROW = 5


@pytest.mark.parametrize("base", world.BASES)
def test_82_killed_at_random_moments_five_times_in_a_row(recorded, base):
    """20 kills in 4 runs, each killed 5 times before it may finish."""
    made, reference, _ = recorded(base, True)
    seed = time.time_ns()
    draw = random.Random(seed)
    span = kills.life(made)
    for _ in range(KILLS // IN_A_ROW // len(world.BASES)):
        done = kills.chain(made, reference, IN_A_ROW, draw, span)
        assert not done.problems, (seed, done.moments, done.problems)
        assert done.in_a_row == IN_A_ROW


def test_a_killed_process_leaves_just_the_recorded_instant(recorded):
    """Every twelfth operation: what `test_crashes` lays out is what a SIGKILL leaves."""
    made, _, seen = recorded(DIT, True)
    for instant in seen[:-1:12]:
        made.forget()
        code, said = processes.train(made, processes.kill_before, made.state, instant.number)
        assert code == -9, said
        assert instants.plain(instants.capture(made.state)) == instants.plain(instant.tree), instant
