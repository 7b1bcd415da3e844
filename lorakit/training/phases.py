"""Lines of a session's log: what it is doing since when, and at the end the results and the next command."""

from __future__ import annotations

import time
from pathlib import Path

from lorakit.config.recipe import Recipe
from lorakit.core import platform, supervision
from lorakit.core.progress import format_duration
from lorakit.training import run_records
from lorakit.training.run_folder import RunFolder

_session_start = time.monotonic()


def begin_session() -> None:
    """Count the time from here, in a process that no command has started."""
    global _session_start
    _session_start = time.monotonic()


def phase(text: str) -> str:
    """Return a line that says what begins now, after the time since the command started."""
    return f"{_elapsed()}: {text}"


def _elapsed() -> str:
    return format_duration(supervision.seconds_since_start(_session_start))


def done_lines(run: RunFolder, recipe: Recipe) -> str:
    """Return the last lines of a finished run: time, adapter, report and exports, and the next command."""
    lines = [f"done in {_elapsed()}: {run.adapter_file}"]
    report = run.path / run_records.REPORT_FILE
    if report.is_file():
        lines.append(f"  report: {report}")
    folder = run.path / "exports"
    lines += [f"  export: {file}" for file in sorted(folder.glob("*.safetensors"))]
    return "\n".join([*lines, f"  next: {_next_command(run.path, recipe)}"])


def _next_command(run: Path, recipe: Recipe) -> str:
    folder = platform.quote_argument(str(run))
    evaluate = f"lorakit eval run {folder}"
    if recipe.samples.prompts:
        return evaluate
    return f"lorakit eval prompts {folder}, then {evaluate} --prompts prompts.jsonl"
