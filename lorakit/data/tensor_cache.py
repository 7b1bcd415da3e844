"""Latents and text conditions, computed once and addressed by content.

An entry's key is the hash of everything that decides its value (decoded pixels, crop, bucket, autoencoder;
caption and text encoders), so an edited image or another model can never meet a stale entry. A damaged entry
reads as missing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lorakit.core import storage
from lorakit.core.errors import DataError, DiskError, NumericError, first_line
from lorakit.models import base_model

Tensors = dict[str, torch.Tensor]
MAX_MEMORY_BYTES = 2 << 30  # bytes of entries kept in memory


def cache_key(**parts: object) -> str:
    """The address of a value: SHA-256 of what decides it."""
    return storage.sha256_bytes(storage.dump_json(parts).encode())


class TensorCache:
    """Entries of one kind ("latents", "text") in a folder that runs share."""

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        self.folder = (folder or base_model.cache_folder()) / kind
        self._memory: dict[str, Tensors] = {}
        self._bytes = 0

    def path(self, key: str) -> Path:
        """Where an entry lies."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> Tensors | None:
        """The entry, or None when it is missing or damaged."""
        if key in self._memory:
            return self._memory[key]
        try:
            tensors = storage.read_safetensors(self.path(key))
            recorded = storage.read_safetensors_metadata(self.path(key)).get("sha256")
        except (OSError, DataError):  # missing, unreadable or damaged: all the same, it is computed anew
            return None
        if recorded != _digest(tensors):
            return None
        self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: Tensors, what: str) -> None:
        """Store an entry; `what` names its source in the error for non-finite values.

        Raises NumericError for those, which are never stored, and DiskError for a folder that takes nothing.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NumericError(
                    f"the model gave non-finite {name}",
                    where=what,
                    remedy="look at this file; if it is sound, use `train.precision: fp32`",
                )
        try:
            storage.write_safetensors(self.path(key), tensors, {"sha256": _digest(tensors)})
        except (OSError, DiskError) as error:
            raise DiskError(
                f"the cache cannot be written: {first_line(error)}",
                where=str(self.folder),
                remedy="free space there, or set LORAKIT_CACHE to a folder on another disk, and try again",
            ) from error
        self._remember(key, tensors)

    def need(self, key: str) -> Tensors:
        """The entry, which was there a moment ago."""
        found = self.get(key)
        if found is None:
            raise DataError(
                "a cache entry vanished or was damaged during the run",
                where=str(self.path(key)),
                remedy="give the same command again: it is computed anew and the run goes on",
            )
        return found

    def _remember(self, key: str, tensors: Tensors) -> None:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._bytes + size <= MAX_MEMORY_BYTES:
            self._memory[key] = tensors
            self._bytes += size


def _digest(tensors: Tensors) -> str:
    parts = []
    for name, tensor in sorted(tensors.items()):
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {storage.sha256_bytes(data)}")
    return storage.sha256_bytes("\n".join(parts).encode())
