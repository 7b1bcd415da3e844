"""The recipes that ship, from plain photos to pictures with the adapter, on tiny pipelines of their families.

Prepared, cached, trained, killed between two steps, gone on with, exported, sampled. Only what a tiny base
cannot take is overridden: the numbers that say how much.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit import adapter, cli, launch, recipe, storage
from lorakit.export import consumers
from lorakit.train import train
from tests import runs, tiny
from tests.families.common import family_of

# row of the tiny pipeline: recipe
RECIPES = {
    "sd15": "sd15-low-memory",
    "sdxl": "sdxl-low-memory",
    "sd35": "sd35",
    "flux1-dev": "flux1-dev-low-memory",
    "flux2-klein": "flux2-klein",
    "qwen-image": "qwen-image-low-memory",
    "z-image": "z-image",
    "chroma": "chroma-low-memory",
    "sana": "sana",
    "krea2": "krea2-low-memory",
    "glm-image": "krea2",  # its conditions belong to one size of picture
    "kandinsky5": "krea2",  # has no export for everything
}


@pytest.fixture(scope="module", autouse=True)
def _process() -> Iterator[None]:
    """As of a process of its own: garbage, which runs collect between their stages, is not looked for in
    what a test process holds for good."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, prepared by the data tools."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index, size in enumerate([(80, 80), (96, 64), (80, 80), (64, 96)]):
        small = Image.fromarray(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    command = [
        "data",
        "prepare",
        str(folder),
        "--resolution",
        "64",
        "--class-noun",
        "dog",
        "--trigger",
        "sks",
    ]
    assert cli.main(command) == 0
    return folder


def _overrides(row: str, photos: Path, out: Path) -> list[str]:
    prompts = storage.write_jsonl(
        out.parent / "prompts.jsonl", [{"id": "a", "prompt": "a ring", "seeds": [0]}]
    )
    known = [name for name in consumers.NAMES if name in consumers.rules(family_of(row).name)]
    return [
        *(f"base={tiny.tiny_folder(row)}", f"dataset={photos}", f"out={out}", f"export={json.dumps(known)}"),
        *("resolution=64", "optimizer.warmup=0", "train.steps=5", "train.save_every=2", "train.accumulate=1"),
        *(f"samples.prompts={prompts}", "samples.every=4", "samples.steps=1", "samples.guidance=null"),
    ]


@pytest.mark.parametrize("row", RECIPES)
def test_from_photos_to_pictures(row, photos, tmp_path):
    file, run = recipe.folder() / f"{RECIPES[row]}.yaml", tmp_path / "run"
    made = recipe.load(file, _overrides(row, photos, run))
    with runs.killed_at(3):
        train(made)
    assert runs.steps_logged(run) == 3
    train(made)
    assert "going on from step 2" in (run / "log.txt").read_text()
    assert storage.read_json(run / "run.json")["status"] == "done"
    facts = adapter.read_metadata(run / "adapter.safetensors")
    assert (facts["family"], facts["rank"]) == (family_of(row).name, 16)
    dead = tiny.ROWS[row].dead
    for name, value in storage.read_safetensors(run / "adapter.safetensors").items():
        assert value.any() or (dead and re.search(dead, name)), name
    assert len(list((run / "samples/step-00000004").glob("*.png"))) == 1
    assert len(list((run / "exports").glob("*.safetensors"))) > 0
    if row in ("qwen-image", "glm-image"):
        whole = train(recipe.load(file, _overrides(row, photos, tmp_path / "whole"))).path
        assert (whole / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()
    _sampled(row, run, tmp_path)
    shutil.rmtree(run)


def _sampled(row: str, run: Path, folder: Path) -> None:
    command = [
        "sample",
        str(tiny.tiny_folder(row)),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--steps",
        "1",
    ]
    command += ["--size", "64x64", "--quiet", "--adapter", f"{run}:0.8", "--out", str(folder / "pictures")]
    assert cli.main(command) == 0
    (file,) = (folder / "pictures").glob("*.png")
    with Image.open(file) as picture:
        assert picture.size == (64, 64)
        assert max(high - low for low, high in picture.getextrema()) > 0  # of one channel or another


@pytest.mark.parametrize("row", RECIPES if os.environ.get("LORAKIT_LONG") else ["chroma"])
def test_through_accelerate(row, photos, tmp_path):
    """As `lorakit train` starts it; a launch is mostly imports, so all of them are for the longer tier,
    `LORAKIT_LONG=1 pytest tests/families/test_end_to_end.py`."""
    run = tmp_path / "run"
    overrides = _overrides(row, photos, run)
    command = launch.command(str(recipe.folder() / f"{RECIPES[row]}.yaml"), overrides)
    assert launch.run(command) == 0
    assert storage.read_json(run / "run.json")["status"] == "done"
    assert len(list((run / "exports").glob("*.safetensors"))) > 0
