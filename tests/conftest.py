"""Shared by all tests: one thread, no network, a cache of their own."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
_CACHE = tempfile.TemporaryDirectory(prefix="lorakit-tests-")
os.environ["LORAKIT_CACHE"] = _CACHE.name

# Where Python is told to keep no bytecode, each of our many processes would compile torch and diffusers anew,
# 7 s of 13: they share a folder for this run of the tests. Checkout and libraries stay as they are.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", "") and "PYTHONPYCACHEPREFIX" not in os.environ:
    _BYTECODE = tempfile.TemporaryDirectory(prefix="lorakit-tests-bytecode-")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _BYTECODE.name
    sys.dont_write_bytecode = False

# A runner started in the background ignores these signals, and every process that it starts inherits that.
for _name in ("SIGHUP", "SIGQUIT"):
    if hasattr(signal, _name):
        signal.signal(getattr(signal, _name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until the tests are collected: it takes a quarter of the time that imports take


@pytest.fixture(scope="module", autouse=True)
def _garbage() -> None:
    """Trainings collect garbage between their stages, and need not look each time (for 0.7 s) through what
    imports and the tests before have left."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """What was put aside is freed at exit like anything else."""
    gc.unfreeze()
