"""Read an adapter file, lorakit's own or exported, as changes of weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lorakit import storage
from lorakit.errors import DataError
from lorakit.export import layouts

FACTS = "lorakit"
"""Metadata key under which lorakit keeps what it knows about an adapter, as JSON."""


class Change(NamedTuple):
    """The change of one weight: scale * up @ down. Convolutions keep their kernel in `down`."""

    down: torch.Tensor  # (rank, in, ...)
    up: torch.Tensor  # (out, rank, ...)
    scale: float

    @property
    def rank(self) -> int:
        """Inner dimension of the product."""
        return self.down.shape[0]


@dataclass(frozen=True)
class Adapter:
    """Changes by the denoiser's module names, whatever the layout of the file they came from."""

    changes: dict[str, Change]
    component: str
    layout: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str | None:
        """The family's name, where the file records it."""
        return self.facts.get("family")


def load(path: str | Path) -> Adapter:
    """Read an adapter; DataError for a damaged file or a layout that is not known."""
    return _adapter(storage.read_safetensors(path), storage.read_safetensors_metadata(path), str(path))


def parse(data: bytes, where: str) -> Adapter:
    """Read an adapter from a file's bytes; `where` names it in errors."""
    from safetensors.torch import load as load_bytes

    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return _adapter(load_bytes(data), metadata, where)


def _adapter(tensors: dict[str, torch.Tensor], metadata: dict[str, str], where: str) -> Adapter:
    facts = _facts(metadata, where)
    layout = layouts.recognise(tensors)
    if layout is None:
        raise DataError(
            f"no layout of LoRA files that lorakit reads; its keys begin {', '.join(sorted(tensors)[:3])}",
            where=where,
            remedy="readable: lorakit's own, diffusers (lora_A/lora_B) and kohya (lora_unet_)",
        )
    component, parts = layouts.READERS[layout](tensors, where)
    changes = {}
    for module, (down, up, alpha) in sorted(parts.items()):
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0]:
            raise DataError(
                f"shapes {tuple(down.shape)} and {tuple(up.shape)} do not multiply",
                where=f"{where}, {module}",
            )
        rank = down.shape[0]
        if alpha is None:  # the layout has no such key: the file's facts tell, or it is multiplied in
            alpha = float(facts["alpha"]) * rank / facts["rank"] if facts else float(rank)
        changes[module] = Change(down, up, alpha / rank)
    return Adapter(changes, component, layout, facts)


def _facts(metadata: dict[str, str], where: str) -> dict[str, Any]:
    if FACTS not in metadata:
        return {}
    try:
        facts = json.loads(metadata[FACTS])
        sound = facts["rank"] >= 1 and math.isfinite(facts["alpha"]) and isinstance(facts["family"], str)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DataError("the adapter's record of rank, alpha and family is damaged", where=where)
    return dict(facts)
