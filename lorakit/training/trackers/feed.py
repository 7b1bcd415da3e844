"""The values that a run has to send, read from its files: metrics.jsonl and the samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json
from lorakit.training import run_records

SAMPLES_LIST = "samples.json"  # written after the images that it names


@dataclass
class StepValues:
    """The metrics and the sampled images of one step."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    images: list[Path] = field(default_factory=list)


class RunFeed:
    """Reads what a run has appended since the last call."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._offset = 0
        self._rows: list[dict[str, Any]] = []
        self._sampled: set[int] = set()

    def read(self, last_step: int) -> list[StepValues]:
        """Return everything new of the steps up to `last_step`, in their order."""
        self._read_rows()
        due = [row for row in self._rows if row["step"] <= last_step]
        self._rows = [row for row in self._rows if row["step"] > last_step]
        steps: dict[int, StepValues] = {}
        for row in due:
            values = steps.setdefault(row["step"], StepValues(row["step"]))
            values.metrics |= {
                name: value
                for name, value in row.items()
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
            }
        for step, images in self._new_samples(last_step).items():
            steps.setdefault(step, StepValues(step)).images = images
        return [steps[step] for step in sorted(steps)]

    def _read_rows(self) -> None:
        """Read the complete new lines; the file is not kept open, for another session may replace it."""
        file = self.run / run_records.METRICS_FILE
        if not file.exists():
            return
        if file.stat().st_size < self._offset:
            self._offset = 0
        with open(file, "rb") as lines:
            lines.seek(self._offset)
            data = lines.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                row = parse_json(line, str(file))
            except DataError:  # the trainer reports damaged lines
                continue
            if isinstance(row, dict) and type(row.get("step")) is int:
                self._rows.append(row)

    def _new_samples(self, last_step: int) -> dict[int, list[Path]]:
        samples: dict[int, list[Path]] = {}
        for list_file in (self.run / run_records.SAMPLES_FOLDER).glob(f"step-*/{SAMPLES_LIST}"):
            number = list_file.parent.name.removeprefix("step-")
            if number.isdigit() and int(number) <= last_step and int(number) not in self._sampled:
                rows = storage.read_json(list_file)
                samples[int(number)] = [list_file.parent / row["file"] for row in rows]
                self._sampled.add(int(number))
        return samples
