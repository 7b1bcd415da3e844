"""The worlds that the tests of this folder share: each is made once, its run recorded."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator

import pytest

from lorakit.training import run_folder
from tests.reliability import instants, world
from tests.reliability.instants import Instant
from tests.reliability.world import Finished, World

Recorded = tuple[World, Finished, list[Instant]]
"""A world, its finished run, and every instant of that run."""


@pytest.fixture(scope="package", autouse=True)
def _quick() -> Iterator[None]:
    """No waiting for the disk: a killed process loses nothing that it has written (what an fsync is good for,
    `power_cut` shows). And the installed versions do not change meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(run_folder, "package_versions", functools.cache(run_folder.package_versions))
        yield


@pytest.fixture(scope="package")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Recorded]]:
    """(base, looks) -> a world with filled caches and its recorded run."""
    known: dict[tuple[str, bool], Recorded] = {}

    def record(base: str, looks: bool) -> Recorded:
        if (base, looks) not in known:
            made = world.make(tmp_path_factory.mktemp(base), base, looks=looks)
            made.train()  # fills the cache
            made.forget()
            # A training collects garbage twice, and need not look through what the imports left each time.
            gc.collect()
            gc.freeze()
            with instants.recording(made.state) as recorder:
                code, said = made.train()
            assert code == 0, said
            known[base, looks] = made, made.finished(), recorder.instants
        return known[base, looks]

    yield record
    gc.unfreeze()
