"""Tiny random-weight pipelines, built offline in about a second each: the real classes, only small.

`tiny_pipeline(name)` is shared by a whole test session: do not change it; build a copy with `build(name)`.
`tiny_folder(name)` is the same pipeline on disk. Zero-initialized layers are randomized, because a zero gate
hides every mistake. Each module of this package has `ROWS`, one row per pipeline.
"""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import torch

from tests.tiny.parts import SCRATCH, bpe_tokenizer, clip_tokenizer, t5_tokenizer
from tests.tiny.row import Row

__all__ = [
    "BUILDERS",
    "ROWS",
    "Row",
    "bpe_tokenizer",
    "build",
    "clip_tokenizer",
    "randomize",
    "t5_tokenizer",
    "tiny_folder",
    "tiny_pipeline",
]


def _rows() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for info in pkgutil.iter_modules(__path__):
        module_rows = getattr(importlib.import_module(f"{__name__}.{info.name}"), "ROWS", {})
        assert not rows.keys() & module_rows.keys()
        rows |= module_rows
    return rows


ROWS = _rows()
BUILDERS = {name: row.build for name, row in ROWS.items()}


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every zero-initialized tensor small random values; evaluation mode, no gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.2, generator=generator)
    return module.eval().requires_grad_(False)


def build(name: str) -> Any:
    """Build a pipeline; the weights are the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = BUILDERS[name]()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            randomize(component)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def tiny_pipeline(name: str) -> Any:
    """Return the session's shared pipeline; read only."""
    return build(name)


@functools.cache
def tiny_folder(name: str) -> Path:
    """Return the folder of the pipeline as diffusers saves it; read only, removed when the process ends."""
    folder = Path(SCRATCH.name) / name
    pipe = tiny_pipeline(name)
    pipe.save_pretrained(str(folder))
    if settings := getattr(pipe, "lorakit_settings", {}):
        (folder / "lorakit.json").write_text(json.dumps(settings))
    return folder
