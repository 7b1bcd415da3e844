"""A trained adapter in the layouts that other programs read, each proven before the file exists.

SD1.5 goes out in kohya's layout, SD3 and Flux.2 in diffusers' with alpha multiplied in: each of these is
read by ComfyUI and by diffusers alike, so one file serves every consumer. Before a file is written its
bytes are read back by the consumers' key rules (`consumers`): every key must be consumed, the weight change
must be training's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakit import families, places, storage
from lorakit.errors import ConfigError, LorakitError, NumericError
from lorakit.export import consumers, layouts, metadata
from lorakit.export.adapter_file import Adapter, Change, load, parse

__all__ = ["CONSUMERS", "Adapter", "Change", "Exported", "export_adapter", "load"]

CONSUMERS = consumers.NAMES
TOLERANCE = 1e-5  # of the Frobenius norm of a weight's change


@dataclass(frozen=True)
class Exported:
    """One written file. `max_relative_error`: the worst module's error of the weight change, as read back."""

    path: Path
    consumers: tuple[str, ...]
    layout: str
    keys: int
    max_relative_error: float


def export_adapter(
    adapter: Path, consumer: str, out: Path, *, base: Path | None = None, force: bool = False
) -> list[Exported]:
    """Write `adapter` for a consumer ("comfyui", "a1111", "diffusers") or for "all" that can read it.

    `out` is a folder, or the .safetensors file to write. With `base`, the model's folder, the adapter is also
    held against the model's own modules and shapes. `force` lets an adapter through that changes nothing.
    Raises ConfigError where a consumer cannot read it, NumericError for untrained or non-finite weights.
    """
    places.check_new(out, "out")
    if consumer not in (*CONSUMERS, "all"):
        raise ConfigError(f"unknown consumer {consumer!r}", remedy=f"known: {', '.join(CONSUMERS)}, all")
    source = load(adapter)
    if source.family is None:
        raise ConfigError("the file does not say which family it belongs to", where=str(adapter))
    _check_numbers(source, adapter, force)
    if base is not None:
        _check_base(source, adapter, base)
    readers = consumers.readers(source.family, source.changes)
    if consumer != "all" and consumer not in readers:
        raise consumers.refusal(source.family, consumer, source.changes, str(adapter))
    if not readers:
        raise consumers.refusal(source.family, "diffusers", source.changes, str(adapter))
    return [_write(source, _target(adapter, out, consumers.LAYOUTS[source.family]), readers, base)]


def relative_error(change: Change, other: Change) -> float:
    """Frobenius norm of the difference of two weight changes, over the first one's; 0 when both are zero.

    Computed from the factors alone, for the full matrices of a large model take gigabytes.
    """
    size = _norm([change])
    difference = _norm([change, other._replace(scale=-other.scale)])
    return difference / size if size else float(difference > 0)


def _norm(terms: Sequence[Change]) -> float:
    """Norm of the sum of low-rank terms: after two QR factorisations only small triangles are multiplied."""
    up = torch.cat([term.up.double().flatten(1) * term.scale for term in terms], dim=1)  # (out, sum of ranks)
    down = torch.cat([term.down.double().flatten(1) for term in terms])  # (sum of ranks, in)
    small = torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T
    return float(torch.linalg.matrix_norm(small))


def _check_numbers(source: Adapter, adapter: Path, force: bool) -> None:
    for module, change in source.changes.items():
        if not (change.up.isfinite().all() and change.down.isfinite().all()):
            raise NumericError("the adapter holds NaN or infinity", where=f"{adapter}, {module}")
    if not force and not any(change.up.any() and change.down.any() for change in source.changes.values()):
        raise NumericError(
            "the adapter changes nothing: all of its weights are zero",
            where=str(adapter),
            remedy="train it first; force writes it all the same",
        )


def _check_base(source: Adapter, adapter: Path, base: Path) -> None:
    """The adapter's modules exist in the model, with these shapes."""
    family = families.find(base)
    if family.name != source.family:
        raise ConfigError(f"a {source.family} adapter does not fit a {family.name} model", where=str(base))
    shapes = families.shapes(base, family.component)
    wrong = [
        module
        for module, change in source.changes.items()
        if shapes.get(module) != (change.up.shape[0], *change.down.shape[1:])
    ]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} modules do not fit the model, first {', '.join(wrong[:5])}",
            where=str(adapter),
            remedy="give the base it was trained on",
        )


def _target(adapter: Path, out: Path, layout: str) -> Path:
    target = out if out.suffix == ".safetensors" else out / f"{adapter.stem}-{layout}.safetensors"
    if target.exists():
        if target.resolve() == adapter.resolve():
            raise ConfigError("an export never replaces the adapter it is made from", where=str(target))
        if "lorakit" not in storage.read_safetensors_metadata(target):
            raise ConfigError(
                "this file is not lorakit's, so it is kept", where=str(target), remedy="name another"
            )
    return target


def _write(source: Adapter, target: Path, readers: tuple[str, ...], base: Path | None) -> Exported:
    assert source.family is not None
    layout = consumers.LAYOUTS[source.family]
    tensors = layouts.WRITERS[layout](source.changes, source.component)
    data = storage.safetensors_bytes(tensors, metadata.build(source, tensors, base))
    error = _prove(source, data, readers, target)
    storage.write_bytes(target, data)
    return Exported(target, readers, layout, len(tensors), error)


def _prove(source: Adapter, data: bytes, readers: tuple[str, ...], target: Path) -> float:
    """Read the bytes as the consumers would; the worst relative error, or an error that names keys."""
    copy = parse(data, str(target))
    lost = sorted(source.changes.keys() ^ copy.changes.keys())
    unread = [m for name in readers for m in consumers.unread(copy.family or "", name, copy.changes)]
    errors = {
        m: relative_error(change, copy.changes[m]) for m, change in source.changes.items() if m not in lost
    }
    wrong = lost + unread + [module for module, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        raise LorakitError(
            f"the export would not load as trained, so it is not written: {', '.join(wrong[:5])}",
            where=str(target),
            remedy="this is a defect of lorakit; please report it with these names",
        )
    return max(errors.values(), default=0.0)
