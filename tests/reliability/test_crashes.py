"""A crash at every file-system operation of a run, and in the middle of it."""

from __future__ import annotations

import pytest

from tests.reliability import checks, instants, world
from tests.reliability.world import DIT


@pytest.mark.parametrize("looks", [False, True], ids=["plain", "looks"])
@pytest.mark.parametrize("base", world.BASES)
def test_65_a_crash_at_every_operation_ends_in_the_same_bytes(recorded, base, looks):
    made, reference, seen = recorded(base, looks)
    whole = base == DIT and not looks  # the others: once for each content of the visible files
    crashed = [i for i in instants.distinct(seen, fold=not whole) if not instants.at_the_end(i)]
    assert len(crashed) > (100 if whole else 50)
    found = checks.resumes(made, reference, crashed)
    assert not found, "\n".join(found)


def test_65_a_crash_near_the_end_leaves_no_page_behind(recorded):
    """Report and contact sheet show what the run came to, though it was killed just before they were made."""
    made, reference, seen = recorded(DIT, True)
    found = []
    for crashed in instants.distinct([i for i in seen if i.committed == world.STEPS], fold=True):
        found += checks.resume(made, reference, crashed)
        found += [f"{crashed}: {line}" for line in made.pages_missing(reference)]
    assert not found, "\n".join(found)
