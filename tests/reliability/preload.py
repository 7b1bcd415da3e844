"""Imports of the server from which the tests' processes are forked; later garbage collections skip them."""

from __future__ import annotations

import gc

import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import PIL.PngImagePlugin  # noqa: F401
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline  # noqa: F401 - really imports them

import lorakit.training.train  # noqa: F401
from lorakit.core import file_hashes
from tests.reliability import processes  # noqa: F401

# kept hashes depend on the age of files: without them, equal processes do equal operations
file_hashes.MAX_TICK_NS = file_hashes.MAX_CLOCK_ERROR_NS = 1 << 62
gc.collect()
gc.freeze()
