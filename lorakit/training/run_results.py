"""Results of a finished run: adapter, report and exports, recorded with their hashes. Needs no torch.

A run vouches only for files that are still what it wrote: one that is missing or damaged is written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.core import storage
from lorakit.training import run_records
from lorakit.training.run_folder import RunFolder


def record_results(run: RunFolder, step: int, files: Sequence[Path], consumers: Sequence[str]) -> None:
    """Record that a run is finished after `step`, with `files` exported for `consumers` among others."""
    names = {file.relative_to(run.path).as_posix(): storage.sha256_file(file) for file in files}
    run.update_record(status="done", step=step, results={"files": names, "exports": list(consumers)})


def find_damaged_results(run: RunFolder, record: Mapping[str, Any], consumers: Sequence[str]) -> list[str]:
    """Return a sentence for each result of a finished run that is missing or damaged; reads all of them."""
    results = record.get("results", {})
    damage = [f"{name} is {problem}" for name, problem in _damaged_files(run.path, results.get("files", {}))]
    absent = [consumer for consumer in consumers if consumer not in results.get("exports", ())]
    return damage + [f"the export for {consumer} is missing" for consumer in absent]


def _damaged_files(run: Path, hashes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if run_records.ADAPTER_FILE not in hashes:
        yield run_records.ADAPTER_FILE, "not recorded"
    for name, sha256 in hashes.items():
        file = run / name
        if not file.is_file():
            yield name, "missing"
        elif storage.sha256_file(file) != sha256:
            yield name, "damaged"
