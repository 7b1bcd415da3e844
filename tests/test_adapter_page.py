"""The commands of examples/adapters.md, in order, as they stand there, killed on the way; fewer steps."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit import cli, launch, recipe, storage
from lorakit.train import train
from tests import runs

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "examples/adapters.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
    if line.strip()
]
FEWER = ["train.steps=3", "train.batch_size=1", "train.save_every=1"]


def _train_here(command: list[str]) -> int:
    """In this process instead of accelerate's, which has a test of its own; killed and gone on with."""
    at = next(index for index, part in enumerate(command) if part.endswith(".yaml"))
    made = recipe.load(command[at], command[at + 1 :])
    with runs.killed_at(2):
        train(made)
    train(made)
    return 0


def test_the_commands_of_the_page_work_in_order(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "PHOTOS").mkdir()
    rng = np.random.default_rng(1)
    for index in range(2):
        small = Image.fromarray(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8))
        small.resize((80, 64), Image.Resampling.BICUBIC).save(tmp_path / f"PHOTOS/{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run", _train_here)
    with runs.garbage_kept():
        for command in COMMANDS:
            assert command[0] == "lorakit"
            fewer = FEWER if command[1] == "train" else []
            if command[2].endswith("slider.yaml"):
                fewer = [*fewer, "samples.steps=1", "slider.pictures=2"]
            assert cli.main([*command[1:], *fewer]) == 0, command
    for name, exported in {"dora": 2, "text": 1, "word": 1, "slider": 1}.items():
        assert storage.read_json(tmp_path / f"runs/{name}/run.json")["status"] == "done"
        assert "going on from step 2" in (tmp_path / f"runs/{name}/log.txt").read_text()
        assert len(list((tmp_path / f"runs/{name}/exports").glob("*.safetensors"))) == exported, name
    for name in ("dora", "text", "word", "less", "more"):
        assert len(list((tmp_path / f"pictures/{name}").glob("*.png"))) == 2
    assert _pictures(tmp_path / "pictures/less") != _pictures(tmp_path / "pictures/more")


def _pictures(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("name", ["dora", "text-encoder", "word", "slider"])
def test_its_recipes_name_what_they_are_about(name):
    made = recipe.load(ROOT / f"examples/{name}.yaml")
    about = {
        "dora": made.adapter.type == "dora",
        "text-encoder": made.adapter.text_encoder,
        "word": made.embedding is not None and made.adapter.type == "none",
        "slider": made.slider is not None and made.dataset == Path("runs/slider-pictures"),
    }
    assert about[name]
