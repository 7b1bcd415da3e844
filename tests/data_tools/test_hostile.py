"""Three hundred hostile files through `prepare`: each is used or reported, and memory stays bounded.

The whole thousand, with images at the limits: `python -m tests.benchmarks hostile`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import scan
from lorakit import manifest
from lorakit.core.file_hashes import HASHES_FILE
from lorakit.imaging import decode
from tests.data_tools import hostile

PROGRAM = (
    "import re, sys\nfrom lorakit.cli import main\n"
    "code = main.main(['data', 'prepare', sys.argv[1], *sys.argv[2:]])\n"
    "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
    "print(peak, file=sys.stderr)\nsys.exit(code)\n"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = hostile.fill(tmp_path_factory.mktemp("hostile") / "data", 330, bombs=False)
    options = ["--class-noun", "thing", "--resolution", "64", "--json", "--workers", "1"]
    command = [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, str(folder), *options]
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_file_is_used_or_reported(prepared: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, ran = prepared
    assert ran.returncode == 0, ran.stderr
    records = {record.file: record for record in manifest.load_manifest(folder)}
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    named = {file for finding in report["findings"] for file in finding["files"]} | set(records)
    own = {manifest.MANIFEST_FILE, manifest.METADATA_FILE, HASHES_FILE, "report.json", "report.html"}
    for base, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        for name in {*files, *links} - own:
            file = os.path.relpath(os.path.join(base, name), folder)
            assert file in named or ascii(file)[1:-1] in named, file
    counts = json.loads(ran.stdout)
    assert counts["kept"] + sum(counts["excluded"].values()) == counts["images"] == len(records)


def test_reasons_are_known_and_kept_images_can_be_read(
    prepared: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = prepared
    kept = [record for record in manifest.load_manifest(folder) if record.keep]
    assert len(kept) > 50
    for record in manifest.load_manifest(folder):
        assert record.keep or scan.note_code(record.reason) in scan.SCAN_REASONS, record.reason
        assert len(record.reason or "") < 300
    for record in kept:
        assert decode.read_record_image(folder, record).size == record.size


def test_preparation_needs_little_memory(prepared: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, ran = prepared
    assert int(ran.stderr.splitlines()[-1]) < 1_500_000  # KiB
