"""The end of training processes, for their command: the run's status, what is saved, what to do next."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from lorakit.core import launch, platform, storage
from lorakit.core.errors import OTHER_PROCESS_ENDED, ConfigError, LorakitError
from lorakit.core.process_reports import Report
from lorakit.training import run_records
from lorakit.training.run_folder import RunFolder

_REASONS = {
    "SIGKILL": ", as the system does when main memory runs out",
    "SIGSEGV": ": a crash in a library or a driver",
    "SIGABRT": ": a library or a driver gave up",
    "SIGBUS": ": a file or shared memory that a library reads is damaged, cut off or on a full disk",
    "SIGFPE": ": a crash in a library",
    "SIGILL": ": a library was built for another processor",
    "SIGXCPU": ": the limit of processor time (ulimit -t) is reached",
    "SIGTERM": " while it could not save",
}
_REMEDIES = {
    "SIGKILL": "close other programs if memory was short, then: ",
    "SIGBUS": "free space on the disk and in /dev/shm, then: ",
    "SIGXCPU": "raise the limit, then: ",
}


def record_end(out: Path, end: Report) -> Report:
    """Correct the status of a run whose processes have ended, and return the report to print."""
    run = RunFolder(out)
    if end.kind == "stopped":
        _correct_status(run, "interrupted", None)
        return end
    if end.kind != "crash":
        if end.code == ConfigError.exit_code:  # refused before it began: the run is unchanged
            return end
        lines = end.text.strip().splitlines()
        _correct_status(run, "failed", lines[-1 if end.kind == "traceback" else 0])
        return end
    error = f"{launch.process_name(end)} was ended by {end.text}"
    _correct_status(run, "interrupted" if end.text in ("SIGKILL", "SIGTERM") else "failed", error)
    return Report("error", end.rank, end.code, text=str(_explain_crash(out, end, error)))


def _explain_crash(out: Path, crash: Report, error: str) -> LorakitError:
    if step := _saved_step(out):
        saved, remedy = f"step {step} is saved", "goes on from there"
    else:
        saved, remedy = "no step is saved yet", "starts again"
    command = "the same command"
    if (out / run_records.RECIPE_FILE).is_file():
        command = f"`lorakit resume {platform.quote_argument(str(out))}`, or the same command,"
    return LorakitError(
        error + _REASONS.get(crash.text, ""),
        where=f"{out}; {saved}",
        remedy=f"{_REMEDIES.get(crash.text, '')}{command} {remedy}",
    )


def _saved_step(out: Path) -> int:
    """Return the step of the newest committed checkpoint; 0 if there is none."""
    folders = (out / run_records.CHECKPOINTS_FOLDER).glob("step-*")
    steps = [int(m[1]) for f in folders if (m := re.fullmatch(r"step-(\d{8})", f.name))]
    return max(steps, default=0)


def _correct_status(run: RunFolder, status: str, error: str | None) -> None:
    """Write how a run ended, unless its process has written it, or another one has taken the run over."""
    with contextlib.suppress(LorakitError, OSError):  # the disk may be what failed
        if not run.exists:
            return
        with storage.file_lock(run.path / storage.LOCK) as held:
            record = run.record() if held else {}
            if record.get("status") == "running" or record.get("error") == OTHER_PROCESS_ENDED:
                run.update_record(status=status, error=error)
