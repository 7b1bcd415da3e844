"""tracker.json: the identity of a run in each tracker, and what was sent there already.

It is written after the values are handed over. A resumed run repeats the steps since its last checkpoint with
equal results, so that what was sent once never has to be sent again.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorakit.config.monitoring import TrackerConfig
from lorakit.core import storage
from lorakit.core.errors import DataError, LorakitError
from lorakit.training.run_records import TRACKER_FILE
from lorakit.training.trackers.labels import Labels, resolve_labels


@dataclass
class TrackerRecord:
    """One run in one tracker: where it is, and what was sent."""

    tracker: str
    project: str | None = None
    entity: str | None = None
    server: str = ""
    id: str | None = None
    url: str = ""
    settings_hash: str = ""
    last_index: int = -1
    complete: bool = False
    updated: float = 0.0
    sent: dict[str, list[list[int]]] = field(default_factory=dict)
    """The steps of each metric, as ranges [first, last]."""

    def has(self, name: str, step: int) -> bool:
        """Return True if a metric's value of a step was sent."""
        return any(first <= step <= last for first, last in reversed(self.sent.get(name, [])))

    def add(self, name: str, step: int) -> None:
        """Record that a metric's value of a step was sent."""
        ranges = self.sent.setdefault(name, [])
        if ranges and ranges[-1][1] + 1 == step:
            ranges[-1][1] = step
        elif not self.has(name, step):
            ranges.append([step, step])
            ranges.sort()

    def forget_after(self, step: int) -> None:
        """Forget what was sent of later steps, because the tracker does not have it."""
        for name, ranges in self.sent.items():
            self.sent[name] = [[first, min(last, step)] for first, last in ranges if first <= step]

    @property
    def last_step(self) -> int:
        """The last step of which anything was sent; -1 for none."""
        return max((ranges[-1][1] for ranges in self.sent.values() if ranges), default=-1)


class TrackerRecords:
    """All records of tracker.json: a run may have been sent to several trackers and projects."""

    def __init__(self, run: Path) -> None:
        self.file = run / TRACKER_FILE
        self.problem = ""
        self.records: list[TrackerRecord] = []
        if self.file.exists():
            try:
                self.records = [_read_record(row) for row in storage.read_json(self.file)["runs"]]
            except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
                self.problem = f"{TRACKER_FILE} is damaged ({error}): the run is sent again, as a new one"

    def find(self, tracker: str, labels: Labels) -> TrackerRecord:
        """Return the record of a tracker, project and server, and of the id that the user chose; a new one if
        there is none."""
        place = (tracker, labels.project, labels.entity, labels.server)
        for record in self.records:
            same = (record.tracker, record.project, record.entity, record.server) == place
            if same and labels.id in (None, record.id):
                return record
        record = TrackerRecord(*place, id=labels.id)
        self.records.append(record)
        return record

    def save(self, changed: TrackerRecord) -> None:
        """Write tracker.json after a change of one record."""
        changed.updated = time.time()
        storage.write_json(self.file, {"runs": [asdict(record) for record in self.records]})


def _read_record(row: dict[str, Any]) -> TrackerRecord:
    record = TrackerRecord(**row)
    for ranges in record.sent.values():
        if not all(type(step) is int for first, last in ranges for step in (first, last)):
            raise ValueError("`sent` must hold steps")
    return record


def last_results(run: Path, tracker: str) -> str:
    """Return where the results of a run are in the tracker that it was sent to last; empty if unknown."""
    with contextlib.suppress(OSError, LorakitError):
        records = [record for record in TrackerRecords(run).records if record.tracker == tracker]
        return max(records, key=lambda record: record.updated).url if records else ""
    return ""


def is_complete(config: TrackerConfig, run: Path) -> bool:
    """Return True if a tracker has received all of a finished run."""
    labels = resolve_labels(config, run, os.environ)
    with contextlib.suppress(OSError, LorakitError):
        return TrackerRecords(run).find(config.name, labels).complete
    return False
