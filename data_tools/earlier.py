"""Records of an earlier command in a dataset folder, and the hashes of the files that it read."""

from __future__ import annotations

import functools
from pathlib import Path

from lorakit import manifest
from lorakit.core.file_hashes import FileHashes
from lorakit.manifest import Record


class EarlierDataset:
    """The manifest and the kept hashes of a folder, each read once and only if it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def records(self) -> dict[str, Record]:
        """The records of the manifest by file; none without a manifest."""
        if not (self.folder / manifest.MANIFEST_FILE).is_file():
            return {}
        return {record.file: record for record in manifest.load_manifest(self.folder)}

    @functools.cached_property
    def hashes(self) -> FileHashes:
        """The kept hashes of the files."""
        return FileHashes.load(self.folder)

    def wrote_metadata(self) -> bool:
        """Return True if lorakit wrote the metadata.jsonl that is there now."""
        return manifest.is_generated_metadata(self.folder, self.records.values())
