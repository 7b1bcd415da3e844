"""The comparison of a sweep's members: held-out losses, and which differences are beyond chance.

Members are compared image by image on the same held-out images, which are the unit of the statistics. The
best is compared with each other one; the differences are judged together (Holm 1979). Members whose
held-out images are others, because their seed is another, are not compared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.core import statistics, storage
from lorakit.core.statistics import Interval
from lorakit.training.run_folder import RunFolder
from lorakit.training.sweep import sweep_record

LOSSES_FOLDER = "held-out-losses"


@dataclass(frozen=True)
class MemberResult:
    """One member: its settings, its held-out loss, and the difference from the best."""

    name: str
    overrides: tuple[str, ...]
    status: str
    error: str | None
    steps: int
    training_loss: float | None
    """Mean of the last tenth of the steps."""
    held_out_loss: float | None
    curve: list[tuple[float, float]]
    """(step, validation loss)."""
    difference: Interval | None = None
    """Held-out loss minus that of the best member, over the images; None for the best, and without images."""
    is_worse: bool | None = None
    """True if the difference to the best is beyond chance, None where it cannot be judged."""

    def to_json(self) -> dict[str, Any]:
        """Return the member's row in comparison.json."""
        difference = self.difference.to_json() if self.difference else None
        return {**vars(self), "overrides": list(self.overrides), "difference": difference}


@dataclass(frozen=True)
class Comparison:
    """The members of a sweep, best first; `note` says how firm their order is."""

    members: list[MemberResult]
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return the content of comparison.json."""
        return {"note": self.note, "members": [member.to_json() for member in self.members]}


def store_losses(out: Path, name: str, losses: Mapping[str, float]) -> None:
    """Store a member's loss on each held-out image, by the hash of its content."""
    storage.write_json(out / LOSSES_FOLDER / f"{name}.json", dict(losses))


def compare_members(out: Path) -> Comparison:
    """Compare the members of the sweep in the folder `out`."""
    rows, losses = list[MemberResult](), dict[str, dict[str, float]]()
    for recorded in sweep_record.read_record(out):
        rows.append(_read_member(out, recorded))
        file = out / LOSSES_FOLDER / f"{recorded.name}.json"
        if file.exists() and rows[-1].status == "done":
            losses[recorded.name] = {str(k): float(v) for k, v in storage.read_json(file).items()}
    rows.sort(key=lambda row: (row.held_out_loss is None, row.held_out_loss or 0.0, row.name))
    return _judged(rows, losses)


def _read_member(out: Path, recorded: sweep_record.RecordedMember) -> MemberResult:
    run = RunFolder(out / recorded.name)
    record = run.record() if run.exists else {"status": "not started"}
    metrics = run.metrics()
    training = [row["loss"] for row in metrics if isinstance(row.get("loss"), float)]
    curve = [
        (row["step"], row["validation_loss"]) for row in metrics if row.get("validation_loss") is not None
    ]
    tail = training[-max(1, len(training) // 10) :]
    file = out / LOSSES_FOLDER / f"{recorded.name}.json"
    own = list(storage.read_json(file).values()) if file.exists() and record["status"] == "done" else []
    return MemberResult(
        recorded.name,
        recorded.overrides,
        str(record["status"]),
        record.get("error"),
        max((row["step"] for row in metrics), default=0),
        sum(tail) / len(tail) if tail else None,
        sum(own) / len(own) if own else None,
        curve,
    )


def _judged(rows: Sequence[MemberResult], losses: Mapping[str, Mapping[str, float]]) -> Comparison:
    if not losses:
        return Comparison(
            list(rows),
            "No image was held out, so the members cannot be ranked: training losses say nothing about new"
            " images. Hold images out with validate.fraction or validate.folder, or compare samples with"
            " lorakit eval run.",
        )
    best = rows[0].name
    others = [n for n in losses if n != best and losses[n].keys() == losses[best].keys()]
    intervals = [functools.partial(_difference, losses[best], losses[name]) for name in others]
    beyond = dict(zip(others, statistics.holm([_at_level(one) for one in intervals]), strict=True))
    judged = []
    for row in rows:
        if row.name in beyond:
            interval = _difference(losses[best], losses[row.name], 0.95)
            row = MemberResult(**{**vars(row), "difference": interval, "is_worse": beyond[row.name]})
        judged.append(row)
    return Comparison(judged, _note(best, judged, losses))


def _at_level(interval: functools.partial[Interval]) -> Any:
    return lambda level: interval(level)


def _difference(best: Mapping[str, float], other: Mapping[str, float], level: float) -> Interval:
    return statistics.mean_interval([other[image] - best[image] for image in best], level=level)


def _note(best: str, rows: Sequence[MemberResult], losses: Mapping[str, Mapping[str, float]]) -> str:
    equal = [row.name for row in rows if row.is_worse is False]
    worse = [row.name for row in rows if row.is_worse]
    apart = [row.name for row in rows if row.name in losses and row.is_worse is None and row.name != best]
    parts = [f"{best} has the lowest loss on {len(losses[best])} held-out images."]
    if equal:
        parts.append(f"Not distinguishable from it: {', '.join(equal)}.")
    if worse:
        parts.append(f"Worse beyond chance: {', '.join(worse)}.")
    if apart:
        parts.append(
            f"Not compared, because other images were held out: {', '.join(apart)}; with validate.folder all"
            " members have the same."
        )
    parts.append("A low loss is not yet a good adapter: compare samples with lorakit eval run.")
    return " ".join(parts)
