"""Tensors on disk that are computed once, addressed by content.

The key of an entry is the hash of everything that decides its value (content hash, crop, bucket and VAE;
caption and text encoders), so an edited image or another model never gets a stale entry. A damaged entry
counts as missing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from lorakit.core import checksums, storage
from lorakit.core.errors import DataError, DiskError, NumericError, first_line
from lorakit.models import base_model

Tensors = dict[str, torch.Tensor]
MAX_MEMORY_BYTES = 2 << 30  # bytes of entries kept in memory


def cache_key(**parts: object) -> str:
    """Return the key of a value: SHA-256 of everything that decides it."""
    return checksums.sha256_bytes(storage.dump_json(parts).encode())


class TensorCache:
    """Entries of one kind ("latents", "text", ...) in a folder that runs share."""

    def __init__(self, kind: str, folder: Path | None = None) -> None:
        self.folder = (folder or base_model.cache_folder()) / kind
        self._memory: dict[str, Tensors] = {}
        self._bytes = 0

    def entry_path(self, key: str) -> Path:
        """Return the file of an entry."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> Tensors | None:
        """Return the entry, or None if it is missing or damaged."""
        if key in self._memory:
            return self._memory[key]
        try:
            tensors = storage.read_safetensors(self.entry_path(key))
            recorded_hash = storage.read_safetensors_metadata(self.entry_path(key)).get("sha256")
        except (OSError, DataError):  # missing, unreadable or damaged: computed again in any case
            return None
        if recorded_hash != _tensors_hash(tensors):
            return None
        self._keep_in_memory(key, tensors)
        return tensors

    def put(self, key: str, tensors: Tensors, source: str) -> None:
        """Store an entry; `source` names the file or caption in error messages.

        Raises NumericError for values that are not finite, which are never stored, and DiskError if the
        folder cannot be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NumericError(
                    f"the model returned {name} with NaN or infinity",
                    where=source,
                    remedy="look at this input, or download the model again: one of them may be damaged",
                )
        try:
            storage.write_safetensors(self.entry_path(key), tensors, {"sha256": _tensors_hash(tensors)})
        except (OSError, DiskError) as error:
            raise DiskError(
                f"the cache cannot be written: {first_line(error)}",
                where=str(self.folder),
                remedy="free space there, or set LORAKIT_CACHE to a folder on another disk, and try again",
            ) from error
        self._keep_in_memory(key, tensors)

    def require(self, key: str) -> Tensors:
        """Return an entry that was stored before; DataError if it is missing or damaged now."""
        tensors = self.get(key)
        if tensors is None:
            raise DataError(
                "a cache entry was deleted or damaged during the run",
                where=str(self.entry_path(key)),
                remedy="run the same command again: the entry is computed again and the run resumes",
            )
        return tensors

    def _keep_in_memory(self, key: str, tensors: Tensors) -> None:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._bytes + size <= MAX_MEMORY_BYTES:
            self._memory[key] = tensors
            self._bytes += size


def _tensors_hash(tensors: Tensors) -> str:
    parts = []
    for name, tensor in sorted(tensors.items()):
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {checksums.sha256_bytes(data)}")
    return checksums.sha256_bytes("\n".join(parts).encode())
