"""A crash at every file-system operation of a run, and in the middle of it."""

from __future__ import annotations

import pytest

from tests.long_tier import IS_LONG
from tests.reliability import checks, instants, tiny_training
from tests.reliability.tiny_training import DIT


@pytest.mark.parametrize("monitored", [False, True], ids=["plain", "monitored"])
@pytest.mark.parametrize("base", tiny_training.BASES)
def test_a_crash_at_every_operation_ends_in_the_same_bytes(recorded, base, monitored):
    whole = base == DIT and not monitored  # the others: once for each content of the visible files
    if not (whole or IS_LONG):
        pytest.skip("takes minutes; set LORAKIT_LONG=1")
    training, reference, seen = recorded(base, monitored)
    crashed = [i for i in instants.distinct(seen, fold=not whole) if not instants.at_the_end(i)]
    assert len(crashed) > (100 if whole else 50)
    crashed = crashed if IS_LONG else crashed[::2]
    found = checks.resumes(training, reference, crashed)
    assert not found, "\n".join(found)


def test_a_crash_near_the_end_leaves_no_outdated_report(recorded):
    """Report and contact sheet show the finished run, though it was killed just before they were written."""
    training, reference, seen = recorded(DIT, True)
    found = []
    for crashed in instants.distinct([i for i in seen if i.committed == tiny_training.STEPS], fold=True):
        found += checks.resume(training, reference, crashed)
        found += [f"{crashed}: {line}" for line in training.outdated_reports(reference)]
    assert not found, "\n".join(found)
