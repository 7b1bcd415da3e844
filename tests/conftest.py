"""Shared by all tests: one thread, no network, a cache of their own."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
_CACHE = tempfile.TemporaryDirectory(prefix="lorakit-tests-")
os.environ["LORAKIT_CACHE"] = _CACHE.name
