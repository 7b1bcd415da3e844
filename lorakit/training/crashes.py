"""The end of a training process that was killed: what is saved, what the record says, and what to do next."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

from lorakit.core import storage
from lorakit.core.errors import LorakitError
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


def explain_crash(out: Path, crash: Report) -> LorakitError:
    """Return the error of a training process that was killed, and correct the status of its run."""
    run = RunFolder(out)
    process = f"training process {crash.rank}" if crash.rank else "the training process"
    reason = _REASONS.get(crash.text, "")
    if step := _saved_step(out):
        saved, remedy = f"step {step} is saved", "goes on from there"
    else:
        saved, remedy = "no step is saved yet", "starts again"
    _correct_status(
        run, f"{process} was ended by {crash.text}", interrupted=crash.text in ("SIGKILL", "SIGTERM")
    )
    command = "the same command"
    if (out / run_records.RECIPE_FILE).is_file():
        command = f"`lorakit resume {shlex.quote(str(out))}`, or the same command,"
    return LorakitError(
        f"{process} was ended by {crash.text}{reason}",
        where=f"{out}; {saved}",
        remedy=f"{_REMEDIES.get(crash.text, '')}{command} {remedy}",
    )


def _saved_step(out: Path) -> int:
    """Return the step of the newest committed checkpoint; 0 if there is none."""
    folders = (out / run_records.CHECKPOINTS_FOLDER).glob("step-*")
    steps = [int(m[1]) for f in folders if (m := re.fullmatch(r"step-(\d{8})", f.name))]
    return max(steps, default=0)


def _correct_status(run: RunFolder, error: str, *, interrupted: bool) -> None:
    """Write that a run is not running any more, unless another process has taken it over meanwhile."""
    with contextlib.suppress(LorakitError, OSError):  # the disk may be what failed
        if not run.exists:
            return
        with storage.file_lock(run.path / storage.LOCK) as held:
            if held and run.status == "running":
                run.update_record(status="interrupted" if interrupted else "failed", error=error)
