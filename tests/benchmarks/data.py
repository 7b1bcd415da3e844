"""Preparing data: 12-megapixel pictures beside a plain Pillow loop, many small files, hostile ones.

User and system CPU seconds, because machines are shared; rounds interleaved, medians compared. No speed
counts unless the resized picture is that of the plain loop: 42 dB at least, 1.2 levels in the mean at most.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from data_tools import scan
from data_tools.formats import DatasetFile, shrink
from lorakit import manifest
from lorakit.imaging import resize
from lorakit.manifest import Record
from tests.data_tools import hostile

SIDES, SIZE = (4000, 3000), (1152, 864)
WHOLE = (0, 0, *SIDES)
GOALS = {"times": 3.0, "per_second": 35.0, "decibel": 42.0, "levels": 1.2, "hostile_mb": 1500}
CORES = 2


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def photograph(seed: int) -> Image.Image:
    """Detail at every scale with the falling spectrum of photographs, and noise; about 3 MB as JPEG."""
    rng = np.random.default_rng(seed)
    total = np.full((SIDES[1], SIDES[0], 3), 128, np.float32)
    for level in range(2, 10):
        cells = rng.normal(0, 90 / level, (2**level, 2**level, 3)).astype(np.float32)
        for band in range(3):
            grown = Image.fromarray(cells[..., band]).resize(SIDES, Image.Resampling.BICUBIC)
            total[..., band] += np.asarray(grown)
    total += rng.normal(0, 4, (SIDES[1], SIDES[0], 1)).astype(np.float32)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def plain(path: Path) -> Image.Image:
    """What a loop over files does: decode all, resize with LANCZOS."""
    with Image.open(path) as image:
        return image.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)


def pictures(rounds: int, count: int = 3) -> list[dict[str, Any]]:
    """A row for JPEG and one for PNG: milliseconds of CPU an image."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(count):
            drawn = photograph(seed)
            drawn.save(folder / f"{seed}.jpg", quality=90)
            drawn.save(folder / f"{seed}.png")
        for suffix in ("jpg", "png"):
            files = [f"{seed}.{suffix}" for seed in range(count)]
            rows.append(_compare(folder, files, rounds) | {"kind": suffix})
    return rows


def _compare(folder: Path, files: list[str], rounds: int) -> dict[str, Any]:
    options = scan.ScanOptions()
    records = {file: scan.scan_file(str(folder), options, scan.ScanJob(file, None)) for file in files}
    assert all(record.keep and record.size == SIDES for record in records.values())
    contestants: dict[str, Callable[[str], object]] = {
        "plain": lambda file: plain(folder / file),
        "scan": lambda file: scan.scan_file(str(folder), options, scan.ScanJob(file, None)),
        "resize": lambda file: resize.load_image_tensor(folder, records[file], WHOLE, SIZE),
        "shrink": lambda file: _shrunk(folder / file),
    }
    spent: dict[str, list[float]] = {who: [] for who in contestants}
    for _ in range(rounds):
        for who, act in contestants.items():
            for file in files:
                began = cpu_seconds()
                act(file)
                spent[who].append(cpu_seconds() - began)
    ms = {who: 1000 * statistics.median(values) for who, values in spent.items()}
    row: dict[str, Any] = {f"{who}_ms": round(value, 1) for who, value in ms.items()}
    row |= {"times": {who: round(ms["plain"] / ms[who], 2) for who in ("scan", "resize", "shrink")}}
    row["times"]["scan and resize"] = round(ms["plain"] / (ms["scan"] + ms["resize"]), 2)
    row["per_second"] = {who: round(1000 * CORES / value, 1) for who, value in ms.items()}
    row["per_second"]["scan and resize"] = round(1000 * CORES / (ms["scan"] + ms["resize"]), 1)
    return row | _fidelity(folder, records)


def _shrunk(path: Path) -> bytes:
    """The file that `import --short-side` writes: checked to the stream's end, resized, encoded again."""
    made = shrink.resize_entry(min(SIZE), DatasetFile(path.name, path.read_bytes())).data
    assert made is not None
    return made


def _fidelity(folder: Path, records: dict[str, Record]) -> dict[str, float]:
    """The worst over the pictures; `copy_decibel` is that of the written file, compression and all."""
    worst = {"decibel": 99.0, "levels": 0.0, "copy_decibel": 99.0}
    for file, record in records.items():
        same = np.asarray(plain(folder / file)).astype(float)
        ours = resize.load_image_tensor(folder, record, WHOLE, SIZE).permute(1, 2, 0).numpy()
        copy = np.asarray(Image.open(io.BytesIO(_shrunk(folder / file))))
        worst["decibel"] = min(worst["decibel"], _decibel(ours, same))
        worst["copy_decibel"] = min(worst["copy_decibel"], _decibel(copy, same))
        worst["levels"] = max(worst["levels"], float(np.abs(ours - same).mean()))
    return {name: round(value, 2) for name, value in worst.items()}


def _decibel(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(10 * np.log10(255**2 / np.square(one - other).mean()))


PREPARE = (
    "import json, re, resource, sys, time\nfrom data_tools.prepare import PrepareOptions, {command}\n"
    "if __name__ == '__main__':\n"
    "    began = time.monotonic()\n"
    "    options = PrepareOptions(resolution=64, min_side=8, quiet=True, class_noun='thing')\n"
    "    found = {command}(sys.argv[1], options)\n"
    "    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
    "    print(json.dumps({{'images': len(found.records), 'seconds': round(time.monotonic() - began, 1),\n"
    "        'cpu_seconds': round(sum(u.ru_utime + u.ru_stime for u in used), 1),\n"
    "        'peak_mb': int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10}}))\n"
)


def many(counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Scan and preparation of folders of small files: seconds, and the parent process's peak memory."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            _small_files(Path(name), count)
            for command in ("scan_only", "prepare"):
                rows.append({"command": command} | _run(command, Path(name)))
    return rows


def _run(command: str, folder: Path) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(PREPARE.format(command=command))
        script.flush()
        ran = subprocess.run([sys.executable, script.name, str(folder)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _small_files(folder: Path, count: int) -> None:
    for number in range(count):
        place = folder / f"{number // 1000:04d}"
        place.mkdir(exist_ok=True)
        cells = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(cells).resize((32, 32), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=80)
        (place / f"{number:06d}.jpg").write_bytes(buffer.getvalue())


def thousand(count: int = 1000) -> dict[str, Any]:
    """Hostile files through `prepare`: seconds, and the peak memory of all its processes together."""
    with tempfile.TemporaryDirectory() as name:
        folder = hostile.fill(Path(name) / "data", count)
        command = [
            sys.executable,
            "-m",
            "lorakit.cli.main",
            "data",
            "prepare",
            str(folder),
            "--class-noun",
            "thing",
        ]
        began = time.monotonic()
        process = subprocess.Popen([*command, "--quiet", "--workers", str(CORES)])
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process.pid, peak))
        watcher.start()
        code = process.wait()
        watcher.join()
        records = manifest.load_manifest(folder)
        entries = sum(len(files) for *_, files in os.walk(folder))
    return {
        "files": entries,
        "images": len(records),
        "kept": sum(record.keep for record in records),
        "exit": code,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": peak[0] >> 20,
    }


def _watch(pid: int, peak: list[int]) -> None:
    """Follow the resident memory of a process and its children until it ends."""
    try:
        parent = psutil.Process(pid)
        while parent.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [parent, *parent.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)
            time.sleep(0.02)
    except psutil.Error:
        return


def good(row: dict[str, Any]) -> bool:
    """Whether a row of `pictures` reaches the goals; those for speed are for JPEG."""
    same = row["decibel"] >= GOALS["decibel"] and row["levels"] <= GOALS["levels"]
    same = same and row["copy_decibel"] >= GOALS["decibel"]
    quick = row["times"]["scan"] >= GOALS["times"] and row["times"]["resize"] >= GOALS["times"]
    quick = quick and min(row["per_second"]["resize"], row["per_second"]["shrink"]) >= GOALS["per_second"]
    return same and (quick or row["kind"] != "jpg")


def report(rows: list[dict[str, Any]]) -> str:
    """`pictures` for people."""
    lines = []
    for row in rows:
        lines.append(
            f"{row['kind']}: plain {row['plain_ms']} ms, scan {row['scan_ms']}, verified read and resize"
            f" {row['resize_ms']}, checked, resized and written again {row['shrink_ms']}; times as quick:"
            f" {row['times']}; images/s on {CORES} cores: {row['per_second']} (goal for JPEG, checked and"
            f" resized in one pass: {GOALS['per_second']:g}); resized pictures {row['decibel']} dB,"
            f" {row['levels']} levels apart, written ones {row['copy_decibel']} dB"
        )
    return "\n".join(lines)
