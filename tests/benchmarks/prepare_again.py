"""A prepared folder of many small images prepared again: CPU seconds by phase, and peak memory.

Every image is different and has a caption file of its own. The folder is prepared once, and then again
without a change, each in a process of its own; the phases are the functions that `prepare_dataset` calls.
"""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GOAL_SECONDS_PER_100_000 = 20.0
AGE_SECONDS = 60  # of the files: the hash of a file that was written just now is not kept
SIZES = ((32, 32), (36, 28), (28, 36), (40, 26), (26, 40))
_WORD_LIST = "red blue green old small dark house barn lake tree dog cat road sky hill river cloud boat"
WORDS = _WORD_LIST.split()
_clock: dict[str, float] = defaultdict(float)


def write_folder(folder: Path, count: int) -> None:
    """Write `count` different JPEGs of 1 KB with captions, 1,000 in each subfolder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        subfolder = folder / f"{number // 1000:04d}"
        if number % 1000 == 0:
            subfolder.mkdir(parents=True)
        cells = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        cells.resize(SIZES[number % len(SIZES)], Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
        (subfolder / f"{number:06d}.jpg").write_bytes(buffer.getvalue())
        words = " ".join(WORDS[index] for index in rng.integers(0, len(WORDS), 9))
        (subfolder / f"{number:06d}.txt").write_text(f"a photo of {words}, number {number}")


def measure(count: int) -> dict[str, Any]:
    """Prepare a folder of `count` images twice; return CPU seconds, those of the phases, and memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        write_folder(folder, count)
        first = _run(folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        second = _run(folder)
        same = all((folder / file).read_bytes() == data for file, data in before.items())
    return {"images": count, "first": first, "again": second, "same_bytes": same}


def passes(result: dict[str, Any]) -> bool:
    """Return True if the second command reached the goal and wrote the same bytes."""
    goal = GOAL_SECONDS_PER_100_000 * max(0.25, result["images"] / 100_000)
    return result["same_bytes"] and result["again"]["cpu_seconds"] < goal


def format_report(result: dict[str, Any]) -> str:
    """Return the phases as lines."""
    lines = [f"{result['images']} images prepared, then again without a change; the same bytes:"]
    lines[0] += f" {result['same_bytes']}"
    for phase in result["again"]["phases"]:
        seconds = (result[run]["phases"].get(phase, 0.0) for run in ("first", "again"))
        lines.append(f"  {phase:28}" + "".join(f"{value:9.2f}" for value in seconds))
    for row, key in (("CPU seconds", "cpu_seconds"), ("peak memory, MB", "peak_mb")):
        lines.append(f"  {row:28}" + "".join(f"{result[run][key]:9.1f}" for run in ("first", "again")))
    return "\n".join(lines)


def _run(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.prepare_again", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads(process.stdout)
    return result


# ---- in a process of its own -------------------------------------------------------------------------------


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its CPU time counted as phase `name`; a phase inside another counts alone."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        start, inner = time.process_time(), sum(_clock.values())
        try:
            return function(*arguments, **options)
        finally:
            _clock[name] += time.process_time() - start - (sum(_clock.values()) - inner)

    return run


def _time_phases() -> None:
    """Count the time of the functions that `prepare_dataset` calls."""
    from data_tools import assign_buckets, check, duplicates, earlier, prepare, report, scan
    from data_tools.captions import collect
    from lorakit import manifest

    phases: tuple[tuple[str, Any, str], ...] = (
        ("list the folder", prepare, "_list_files"),
        ("read the manifest", manifest, "load_manifest"),
        ("find changed images", scan, "scan_images"),
        ("read captions", collect, "collect_captions"),
        ("choose buckets", assign_buckets, "bucket_records"),
        ("masks and controls", prepare, "_attach_files"),
        ("find duplicates", duplicates, "find_near_duplicates"),
        ("other checks", check, "check_dataset"),
        ("write the manifest", manifest, "save_manifest"),
        ("report", report, "write_report"),
        ("read the hashes", earlier.FileHashes, "load"),
        ("write the hashes", earlier.FileHashes, "save"),
    )
    for name, owner, attribute in phases:
        setattr(owner, attribute, _timed(name, getattr(owner, attribute)))


def _prepare(folder: str) -> dict[str, Any]:
    start = os.times()
    from data_tools.prepare import PrepareOptions, prepare_dataset
    from lorakit.core import file_hashes

    real = file_hashes.file_system_clock
    file_hashes.file_system_clock = lambda where: real(where)._replace(  # type: ignore[assignment]
        modified=real(where).modified + AGE_SECONDS * 10**9
    )
    _time_phases()
    options = PrepareOptions(resolution=64, min_side=8, quiet=True)
    result = prepare_dataset(folder, options)
    used = os.times()
    seconds = sum(used[:4]) - sum(start[:4])
    phases = {name: round(value, 2) for name, value in _clock.items()}
    rest = seconds - sum(_clock.values())
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peak = next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)
    return {
        "images": len(result.records),
        "cpu_seconds": round(seconds, 2),
        "phases": phases | {"imports, other processes, rest": round(rest, 2)},
        "peak_mb": peak,
    }


if __name__ == "__main__":
    print(json.dumps(_prepare(sys.argv[1])))
