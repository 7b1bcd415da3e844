"""The trainings that the tests of this folder share: each is created once, and its run recorded."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator

import pytest

from lorakit.core import file_hashes
from lorakit.models import base_model
from lorakit.training import final_loss, run_identity
from tests.reliability import instants, tiny_training
from tests.reliability.instants import Instant
from tests.reliability.tiny_training import Finished, TinyTraining

Recorded = tuple[TinyTraining, Finished, list[Instant]]
"""A training, its finished run, and every instant of that run."""


@pytest.fixture(scope="package", autouse=True)
def _quick() -> Iterator[None]:
    """Do not wait for the disk: a killed process loses nothing that it has written (the effect of an fsync,
    `power_cut` shows). The installed versions do not change meanwhile, and the loss at the end, which changes
    no state, takes a fifth of such a short run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(run_identity, "package_versions", functools.cache(run_identity.package_versions))
        patch.setattr(final_loss, "measure_final_loss", lambda session, loss: None)
        for name in ("MAX_TICK_NS", "MAX_CLOCK_ERROR_NS"):  # kept hashes would depend on the age of files
            patch.setattr(file_hashes, name, 1 << 62)
        yield


@pytest.fixture(scope="package")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bool], Recorded]]:
    """Record a training of a base, with or without samples and validation; its caches are filled before."""
    known: dict[tuple[str, bool], Recorded] = {}

    def record(base: str, monitored: bool) -> Recorded:
        if (base, monitored) not in known:
            training = tiny_training.make(tmp_path_factory.mktemp(base), base, monitored=monitored)
            base_model.component_hashes.cache_clear()  # of tests before in this process
            training.train()  # fills the cache
            training.delete_run()
            # A training collects garbage twice, and need not search the objects of the imports each time.
            gc.collect()
            gc.freeze()
            base_model.component_hashes.cache_clear()  # a new process hashes the base model
            with instants.recording(training.state) as recorder:
                code, output = training.train()
            assert code == 0, output
            known[base, monitored] = training, training.finished(), recorder.instants
        return known[base, monitored]

    yield record
    gc.unfreeze()
