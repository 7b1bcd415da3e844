"""Reports of training processes to the command that started them, as lines in a pipe.

Several processes write to one pipe: no line is longer than a pipe takes at once, so that lines never mix,
and a long text comes in parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

_MARK = b"\x1elorakit "  # nothing else that is printed starts like this
_PART = 30  # characters, of up to 12 bytes each; a line stays below the 512 bytes that POSIX promises
MAX_TEXT = 20_000  # characters of a report; of a longer one, the end is kept

_PRIORITY = {"crash": 0, "error": 1, "traceback": 1, "consequence": 2, "stopped": 3}
_ABORTED = 134  # libraries abort a process when another one has ended; this says no more than an error


@dataclass(frozen=True)
class Report:
    """One report of a process.

    `kind`: start, crash (it was killed; its launcher reports this), error, traceback, consequence (of another
    process's end) or stopped (by a signal). `rank` is the process's number; `code` its exit code.
    """

    kind: str
    rank: int
    code: int = 0
    pid: int = 0
    text: str = ""


def write_report(pipe: int, report: Report) -> None:
    """Write a report to a pipe. Raises OSError when nobody reads it."""
    text = report.text[-MAX_TEXT:]
    parts = [text[start : start + _PART] for start in range(0, len(text), _PART)] or [""]
    for part in parts[:-1]:
        _write_line(pipe, {"kind": "part", "rank": report.rank, "text": part})
    _write_line(pipe, asdict(report) | {"text": parts[-1]})


def _write_line(pipe: int, values: dict[str, object]) -> None:
    line = _MARK + json.dumps(values, separators=(",", ":")).encode() + b"\n"
    while line:  # at once, unless a signal comes between
        line = line[os.write(pipe, line) :]


@dataclass
class ReportReader:
    """Collects the reports of all processes in the order of their arrival."""

    reports: list[Report] = field(default_factory=list)
    _parts: dict[int, str] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # a signal handler asks for `pids`, too

    def read(self, lines: Iterable[bytes]) -> None:
        """Read lines until the pipe's end; others than reports are dropped."""
        for line in lines:
            if line.startswith(_MARK):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill
                    self._add(json.loads(line.removeprefix(_MARK)))

    def _add(self, values: dict[str, object]) -> None:
        rank, text = int(str(values["rank"])), str(values["text"])
        with self._lock:
            if values["kind"] != "crash":  # which the launcher reports of a process, perhaps within its text
                text = self._parts.pop(rank, "") + text
            if values["kind"] == "part":
                self._parts[rank] = text
            else:
                self.reports.append(Report(**(values | {"text": text})))  # type: ignore[arg-type]

    def pids(self) -> list[int]:
        """Return the process ids of the training processes that have started."""
        with self._lock:
            return [report.pid for report in self.reports if report.kind == "start"]

    def end(self) -> Report | None:
        """Return the most telling report of an end, the first of its kind; None if no process sent one."""
        with self._lock:
            ends = [report for report in self.reports if report.kind in _PRIORITY]
        return min(ends, key=_priority, default=None)


def _priority(report: Report) -> int:
    return 1 if report.code == _ABORTED else _PRIORITY[report.kind]
