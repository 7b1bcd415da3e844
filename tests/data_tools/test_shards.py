"""A scan in shards, in processes that may die, and by Ray: all give the result of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_tools import process_pool, scan, scan_shards
from data_tools.listing import list_dataset
from data_tools.prepare import (
    PrepareOptions,
    merge_scan_shards,
    prepare_dataset,
    scan_dataset,
    scan_dataset_shard,
)
from data_tools.scan import ScanOptions
from data_tools.scan_shards import shard_file
from lorakit import manifest
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.shards import Shard
from tests.data_tools.folders import fill, photo, written
from tests.long_tier import some_long

OPTIONS = PrepareOptions(resolution=64, quiet=True, report=False, workers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = dict.fromkeys([f"{index:02d}.png" for index in range(11)] + ["sub/a.jpg", "sub/b.webp"])
    made = fill(tmp_path / "data", names, size=(64, 48))
    (made / "05.png").write_bytes(b"")
    (made / "03.png").write_bytes(b"GIF89a")
    photo(2).save(made / "sub/a.png")
    (made / "sub/a.txt").write_text("whose?")  # a collision across shards
    return made


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".lorakit"))


def test_shards_and_merge_give_what_one_scan_gives(folder: Path) -> None:
    for number in (1, 2, 3):
        scan_dataset_shard(folder, OPTIONS, f"{number}/3")
    assert len(left(folder)) == 3
    merge_scan_shards(folder, OPTIONS)
    assert left(folder) == []
    merged = written(folder)
    (folder / manifest.MANIFEST_FILE).unlink()
    (folder / manifest.METADATA_FILE).unlink()
    scan_dataset(folder, OPTIONS)
    assert written(folder) == merged


def test_every_image_is_in_exactly_one_shard(folder: Path) -> None:
    listing = list_dataset(folder)
    for count in (1, 2, 5, 20):
        parts = [file for number in range(1, count + 1) for file in Shard(number, count).part(listing.images)]
        assert sorted(parts) == sorted(listing.images)


def test_a_missing_or_unfinished_shard_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="no shards to merge"):
        merge_scan_shards(folder, OPTIONS)
    scan_dataset_shard(folder, OPTIONS, "1/2")
    with pytest.raises(DataError, match="shard 2/2 lacks 7 images") as caught:
        merge_scan_shards(folder, OPTIONS)
    assert "--shard 2/2" in str(caught.value)
    scan_dataset_shard(folder, OPTIONS, "2/2")
    path = folder / shard_file(Shard(2, 2))
    path.write_bytes(path.read_bytes()[:-30])  # a crash tore the last line
    with pytest.raises(DataError, match="lacks 1 images"):
        merge_scan_shards(folder, OPTIONS)
    scan_dataset_shard(folder, OPTIONS, "2/2")
    scan_dataset_shard(folder, OPTIONS, "1/3")
    with pytest.raises(DataError, match="different scans"):
        merge_scan_shards(folder, OPTIONS)


def test_a_stopped_shard_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan_dataset_shard(folder, OPTIONS, "1/2")
    path = folder / shard_file(Shard(1, 2))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    seen: list[str] = []
    real = scan.scan_file

    def count(root: str, options: ScanOptions, job: scan.ScanJob) -> manifest.Record:
        seen.append(job.file)
        return real(root, options, job)

    monkeypatch.setattr(scan, "scan_file", count)
    scan_dataset_shard(folder, OPTIONS, "1/2")
    assert len(seen) == len(lines) - 4
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_an_invalid_shard_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="1/8, 2/8"):
        scan_dataset_shard(folder, OPTIONS, text)


def double(number: int) -> int:
    """Module level, for the worker processes."""
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def crashed(number: int) -> int:
    return -1


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order(count: int) -> None:
    assert list(process_pool.OrderedProcessPool(double, crashed, count).run(iter(range(300)))) == [
        2 * n for n in range(300)
    ]


def test_a_job_that_kills_its_process_is_reported_and_the_others_are_done() -> None:
    jobs = [-1 if number == 70 else number for number in range(100)]
    assert list(process_pool.OrderedProcessPool(double, crashed, 2).run(jobs)) == [
        n if n < 0 else 2 * n for n in jobs
    ]


def test_a_file_that_kills_the_decoder_is_excluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path, {f"{index:02d}.png": None for index in range(16)}, size=(64, 48))
    monkeypatch.setattr(scan, "MIN_FILES_FOR_POOL", 1)
    monkeypatch.setattr(scan, "scan_file", deadly)
    records = scan.scan_images(list_dataset(folder), ScanOptions(workers=2))
    assert {r.file: scan.note_code(r.reason) for r in records if not r.keep} == {"09.png": "decoder_crashed"}
    assert len(records) == 16


_measure = scan.scan_file


def deadly(root: str, options: ScanOptions, job: scan.ScanJob) -> manifest.Record:
    if job.file == "09.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return _measure(root, options, job)


def test_a_script_without_a_main_guard_still_works(tmp_path: Path) -> None:
    folder = fill(tmp_path / "data", {f"{index:02d}.png": None for index in range(70)}, size=(24, 24))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom data_tools import listing, scan\n"
        "files = listing.list_dataset(sys.argv[1])\n"
        "print(len(scan.scan_images(files, scan.ScanOptions(workers=2))))\n"
    )
    ran = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True)
    assert ran.stdout.strip() == "70", ran.stderr


def workers_of(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize(("part", "count"), some_long([(0.1, 1), (0.6, 2)], (0.1, 1)))
def test_a_killed_prepare_continues_to_the_same_bytes(tmp_path: Path, part: float, count: int) -> None:
    import psutil

    names = {f"{index:03d}.jpg": f"picture {index}" for index in range(90)}
    folder = fill(tmp_path / "data", names, size=(640, 480))
    command = [sys.executable, "-m", "lorakit.cli.main", "data", "prepare", str(folder), "--resolution", "64"]
    command += ["--quiet", "--workers", str(count)]
    journal = folder / scan.SCAN_JOURNAL
    process = subprocess.Popen(command)
    children: list[int] = []
    while process.poll() is None:
        children = children or workers_of(process.pid)
        if journal.exists() and journal.read_bytes().count(b"\n") >= part * 90:
            break
        time.sleep(0.005)
    children += workers_of(process.pid)
    process.kill()
    process.wait()
    assert not (folder / manifest.MANIFEST_FILE).exists()
    done = journal.read_bytes().count(b"\n")
    assert part * 90 <= done < 90
    subprocess.run(command, check=True)
    assert not journal.exists()
    resumed = written(folder)
    for pid in children:  # the killed program's workers ended with it
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    for name in resumed:
        (folder / name).unlink()
    subprocess.run(command, check=True)
    assert written(folder) == resumed


@pytest.mark.skipif(find_spec("ray") is None, reason='needs the extra: pip install "lorakit[ray]"')
def test_ray_gives_the_same_manifest(folder: Path) -> None:
    scan_dataset(folder, OPTIONS, ray_address="local")
    by_ray = written(folder)
    for name in by_ray:
        (folder / name).unlink()
    scan_dataset(folder, OPTIONS)
    assert written(folder) == by_ray


def test_without_ray_the_error_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"lorakit\[ray\]"):
        scan_shards.scan_with_ray(list_dataset(folder), ScanOptions())


def test_a_sharded_scan_can_be_prepared(folder: Path) -> None:
    scan_dataset_shard(folder, OPTIONS, "1/1")
    merge_scan_shards(folder, OPTIONS)
    result = prepare_dataset(
        folder, PrepareOptions(resolution=64, quiet=True, report=False, class_noun="dog")
    )
    assert len(result.kept) == 10
