"""Files of the models that score images: pinned revisions, and the hash of the weights that were read.

A judge whose weights change unnoticed gives figures that cannot be compared with those of last month. The
models that are used by default are therefore pinned to a commit and, where it is known, to the SHA-256 of
their weights; of every other model the commit and the hash are recorded beside the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.core import checksums
from lorakit.core.errors import ConfigError, DataError
from lorakit.models import hub


@dataclass(frozen=True)
class Pin:
    """A commit of a hub repository, and the hash of its weights; None if only the commit is known."""

    revision: str
    weights_sha256: str | None = None


PINS = {
    "timm/vit_base_patch14_dinov2.lvd142m": Pin(
        "4685c99dabffe5affac90bd99dbffd25801ae58d",
        "55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b",
    ),
    "timm/vit_large_patch14_clip_224.openai": Pin(
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    ),
    "timm/vit_base_patch32_clip_224.openai": Pin(
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    ),
    "yuvalkirstain/PickScore_v1": Pin("a4e4367c6dfa7288a00c550414478f865b875800"),
}
"""Repositories that judges load by default."""


@dataclass(frozen=True)
class JudgeFiles:
    """A local folder with a judge's files, its name, and for a hub model the commit."""

    folder: Path
    name: str
    revision: str | None
    weights_sha256: str | None

    def describe(self) -> dict[str, Any]:
        """Return name, commit and hash, as JSON; of a local folder no path, because results are shared."""
        return {"model": self.name, "revision": self.revision, "weights_sha256": self.weights_sha256}


def resolve_judge(spec: str, patterns: Sequence[str], where: str) -> JudgeFiles:
    """Return the files of a judge: a local folder, or a hub id with its pinned commit (or `id@revision`).

    Raises `hub.UnreachableError` without network and local copy, ConfigError for other failures, and
    DataError if the weights of a pinned commit have another hash.
    """
    if Path(spec).is_dir():
        folder = Path(spec)
        return JudgeFiles(folder, folder.resolve().name, None, weights_hash(folder))
    name, _, revision = spec.partition("@")
    pin = PINS.get(name)
    if pin and not revision:
        revision = pin.revision
    folder = hub.download_model(f"{name}@{revision}" if revision else name, patterns, where)
    digest = weights_hash(folder)
    expected = pin.weights_sha256 if pin and revision == pin.revision else None
    if expected and digest not in (None, expected):
        raise DataError(
            f"the weights of {name} are not the published ones",
            where=f"{where}: {folder}",
            remedy="remove this folder from the hub's cache, then run the same command again",
        )
    return JudgeFiles(folder, name, folder.name, digest)


def weights_hash(folder: Path) -> str | None:
    """Return the SHA-256 of the weights in a folder, of several files that of their names and hashes."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    hashes = [checksums.sha256_file(file) for file in files]
    if len(files) == 1:
        return hashes[0]
    lines = [f"{digest}  {file.name}\n" for file, digest in zip(files, hashes, strict=True)]
    return checksums.sha256_bytes("".join(lines).encode())


def require_weights(files: JudgeFiles, where: str) -> Path:
    """Return the one file of weights in safetensors; ConfigError if there are none or several."""
    weights = sorted(files.folder.glob("*.safetensors"))
    if len(weights) != 1:
        raise ConfigError(
            f"{files.name} has {len(weights)} safetensors files, and one is needed",
            where=where,
            remedy="use a model whose weights are in one safetensors file",
        )
    return weights[0]
