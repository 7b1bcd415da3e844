"""The commands of examples/README.md in order, and the Python script."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cli import main
from tests.long_tier import long

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "examples/README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Change into a folder like the top of the checkout, with photos of three sizes, one stored sideways."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "PHOTOS").mkdir()
    rng = np.random.default_rng(1)
    for index, (width, height) in enumerate([(90, 60), (60, 90), (80, 80), (90, 60)]):
        small = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6 if index == 3 else 1
        image.save(tmp_path / f"PHOTOS/{index}.jpg", exif=exif)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_readme_work_in_order(place):
    assert [command[0] for command in COMMANDS] == ["lorakit"] * len(COMMANDS)
    before = {file: file.read_bytes() for file in (place / "PHOTOS").iterdir()}
    for command in COMMANDS:
        assert main.main(command[1:]) == 0, command
    assert all(file.read_bytes() == data for file, data in before.items())
    assert (place / "runs/dog/report.html").is_file()
    assert (place / "runs/dog/eval/report.html").is_file()
    assert list((place / "runs/dog/exports").glob("*.safetensors"))
    assert len(list((place / "images").glob("*.png"))) == 28


@long
def test_the_script_works(place):
    command = [sys.executable, str(place / "examples/train_on_photos.py"), "PHOTOS"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "4 photos are used" in done.stdout
    assert "parameters in " in done.stdout
    assert (place / "runs/dog/sample.png").is_file()
    assert list((place / "runs/dog/exports").glob("step-*/*.safetensors"))
