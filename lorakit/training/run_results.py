"""Results of a finished run: adapter, report and exports, recorded with their hashes. Needs no torch.

A run vouches only for files that are still what it wrote: one that is missing or damaged is written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.core import checksums, storage
from lorakit.training.run_folder import RunFolder


def record_results(run: RunFolder, step: int, files: Sequence[Path], consumers: Sequence[str]) -> None:
    """Record that a run is finished after `step`, with `files` exported for `consumers` among others."""
    storage.record_hashes(run.path, files)
    run.update_record(status="done", step=step, exported_for=list(consumers))


def forget_results(run: RunFolder) -> None:
    """Remove the list of results before they are written again."""
    storage.remove_file(run.path / checksums.CHECKSUMS_FILE)


def find_damaged_results(run: RunFolder, record: Mapping[str, Any], consumers: Sequence[str]) -> list[str]:
    """Return a sentence for results of a finished run that are missing or damaged; reads all of them."""
    damage = checksums.find_folder_damage(run.path)
    absent = [consumer for consumer in consumers if consumer not in record.get("exported_for", ())]
    return [*([damage] if damage else []), *(f"the export for {name} is missing" for name in absent)]
