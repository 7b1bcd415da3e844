"""Identity of a run: the settings, inputs and software that decide its bytes, and what may change in it.

Some changes keep the bytes or the samples of every step: more steps, another number of processes at the same
total batch size. Others are refused unless the user accepts them, and some cannot be made within a run.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from lorakit.core import checksums, storage

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "pillow",
    "pillow-heif",
    "sentencepiece",
    "simplejpeg",
)
DECODERS = ("jpg", "libjpeg_turbo", "jpg_2000", "zlib", "webp", "avif", "libtiff", "littlecms2")
"""Libraries inside Pillow that decide the pixels of an image."""
IDENTITY_PARTS = ("settings", "inputs", "versions")
BATCH_KEYS = ("train.batch_size", "train.accumulate", "num_processes")
LENGTH_KEYS = ("train.steps", "train.extended_at")
FIXED_KEYS = (
    "adapter.",
    "textual_inversion",
    "slider",
    "optimizer.name",
    "optimizer.loraplus_lr_ratio",
    "train.ema_decay",
    "init_from",
)
"""Keys, or beginnings of keys, that decide which tensors a checkpoint holds or how a run starts."""


def package_versions() -> dict[str, str]:
    """Return the versions of the software that decides a run's numbers, the image decoders among it."""
    from PIL import features

    own = {"python": platform.python_version(), "lorakit": metadata.version("lorakit")}
    packages = {name: metadata.version(name) for name in PACKAGES}
    decoders = {f"pillow/{name}": str(features.version(name)) for name in DECODERS}
    return own | packages | decoders


def run_hash(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the settings and inputs that a run keeps when it is extended or moved.

    Checkpoints carry it, so that one of another run is not resumed from.
    """
    settings = {k: v for k, v in record["settings"].items() if k not in BATCH_KEYS + LENGTH_KEYS}
    inputs = {k: v for k, v in record["inputs"].items() if k not in BATCH_KEYS}
    return checksums.sha256_bytes(storage.dump_json([settings, inputs]).encode())


def known_run_hashes(record: Mapping[str, Any]) -> set[str]:
    """Return the hashes that the checkpoints of a run carry: its own, and those before each change."""
    return {run_hash(record), *(change["run_hash"] for change in record.get("changes", []))}


@dataclass(frozen=True)
class Difference:
    """One value that differs between a run's record and what it is resumed with; None where it is missing."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], parts: Sequence[str] = IDENTITY_PARTS
) -> list[Difference]:
    """Return the values that differ in `parts` of two records."""
    return [
        Difference(key, old[part].get(key), new[part].get(key))
        for part in parts
        for key in sorted(old[part].keys() | new[part].keys())
        if old[part].get(key) != new[part].get(key)
    ]


@dataclass(frozen=True)
class Comparison:
    """The differences between a run's record and what it is resumed with, by what they mean for the run."""

    extension: list[Difference]
    """More steps: every step up to the old end has the same bytes."""
    rounding: list[Difference]
    """Another split of the same batch: the same samples in every step, sums rounded in another order."""
    changes: list[Difference]
    """The result is another one: the user must accept it."""
    impossible: list[Difference]
    """A run cannot be resumed with these."""

    @property
    def exists(self) -> bool:
        """True if anything differs."""
        return bool(self.extension or self.rounding or self.changes or self.impossible)


def compare_identities(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Sort the differences between two records by what they mean for the run."""
    comparison = Comparison([], [], [], [])
    same_batch = total_batch_size(old) == total_batch_size(new)
    extended = _is_extension(old["settings"], new["settings"])
    for difference in differences(old, new):
        key = difference.key
        if key in LENGTH_KEYS and extended:
            comparison.extension.append(difference)
        elif key in BATCH_KEYS and same_batch:
            comparison.rounding.append(difference)
        elif key.startswith(FIXED_KEYS) and _is_recorded(old, key):
            comparison.impossible.append(difference)
        else:
            comparison.changes.append(difference)
    return comparison


def _is_recorded(record: Mapping[str, Any], key: str) -> bool:
    """Return True if the record has a key or the section above it; an older version may not have known it."""
    known = record["settings"] | record["inputs"]
    return key in known or key.partition(".")[0] in known


def total_batch_size(record: Mapping[str, Any]) -> int:
    """Return the number of images of one optimizer step in all processes."""
    settings, inputs = record["settings"], record["inputs"]
    return int(settings["train.batch_size"] * settings["train.accumulate"] * inputs["num_processes"])


def _is_extension(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return True if the new settings train longer and change no step before the old end.

    A constant schedule has the same rates however long the run is; any other must start again at the old end.
    """
    if new["train.steps"] <= old["train.steps"]:
        return False
    before, after = list(old.get("train.extended_at", ())), list(new["train.extended_at"])
    constant = old.get("optimizer.schedule") == new.get("optimizer.schedule") == "constant"
    if constant and isinstance(new.get("optimizer.warmup"), int):  # a share would be one of more steps
        return before == after
    return after == [*before, old["train.steps"]]
