"""The record of a sweep, OUT/sweep.json: its members and their overrides. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.path_kind import it_is
from lorakit.training.sweep.grid import Member

SWEEP_FILE, COMPARISON_FILE, REPORT_FILE = "sweep.json", "comparison.json", "report.html"


@dataclass(frozen=True)
class RecordedMember:
    """A member in the record: its name, which is its folder's, and its overrides."""

    name: str
    overrides: tuple[str, ...]


def write_record(out: Path, members: Sequence[Member]) -> None:
    """Write the record of a sweep, or check that the one in `out` has the same members.

    Members may be added: those of earlier sessions are kept. Raises ConfigError if `out` holds something
    else.
    """
    recorded = read_record(out) if (out / SWEEP_FILE).exists() else []
    if not recorded and out.is_dir():
        others = [e for e in out.iterdir() if not storage.is_internal_file(e)]
        if others:
            raise ConfigError(
                f"the folder of the sweep exists, is not empty and is not a sweep{it_is(out)}",
                where=str(out),
                remedy="choose a new folder with --out",
            )
    known = {one.name: one for one in recorded}
    for member in members:
        known[member.name] = RecordedMember(member.name, member.overrides)
    rows = [{"name": one.name, "overrides": list(one.overrides)} for one in known.values()]
    storage.write_json(out / SWEEP_FILE, {"members": rows})


def read_record(out: Path) -> list[RecordedMember]:
    """Return the members of a sweep. Raises ConfigError if there is none, DataError for a damaged record."""
    file = out / SWEEP_FILE
    if not file.exists():
        raise ConfigError("not a sweep", where=str(out), remedy="give the --out folder of a `lorakit sweep`")
    values = storage.read_json(file)
    try:
        return [
            RecordedMember(str(row["name"]), tuple(map(str, row["overrides"]))) for row in values["members"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError("the record of the sweep is damaged", where=str(file), remedy="remove it") from error
