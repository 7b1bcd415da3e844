"""Imports of the server from which the tests' processes are forked; later garbage collections skip them."""

from __future__ import annotations

import gc

import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import PIL.PngImagePlugin  # noqa: F401
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline  # noqa: F401 - really imports them

import lorakit.training.train  # noqa: F401
from tests.reliability import processes  # noqa: F401

gc.collect()
gc.freeze()
