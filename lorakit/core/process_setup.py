"""Settings of a process that have to be in force before torch is imported."""

from __future__ import annotations

import logging
import os
import time

STARTED = time.monotonic()
"""About when this process started; a command imports this module first."""


def configure_process() -> None:
    """Let idle threads sleep instead of spinning, and bitsandbytes not warn about optional kernels.

    Two busy processes whose threads spin would halve each other's speed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
