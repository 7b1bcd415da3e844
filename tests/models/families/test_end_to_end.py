"""The built-in recipes, from plain photos to samples with the adapter, on tiny pipelines of their families.

Prepared, cached, trained, killed between two steps, resumed, exported, sampled. Only sizes and counts that
are too large for a tiny base model are overridden.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit import adapters
from lorakit.adapters.formats import consumers
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import storage
from tests import command_lines, tiny
from tests.models.families.common import family_of

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
    "anima": "anima-low-memory",
    "glm-image": "krea2",  # its text embeddings belong to one image size
    "kandinsky5": "krea2",  # has no export for some programs
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four images, prepared by the data tools."""
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
    assert main.main(command) == 0
    return folder


def _line(row: str, photos: Path, folder: Path, *more: str) -> list[str]:
    """Return the command that trains a row's recipe into `folder`/run."""
    prompts = storage.write_jsonl(folder / "prompts.jsonl", [{"id": "a", "prompt": "a ring", "seeds": [0]}])
    paths = [f"base={tiny.tiny_folder(row)}", f"dataset={photos}", f"out={folder / 'run'}"]
    sampling = [
        f"samples.prompts={prompts}",
        "samples.every=4",
        "samples.num_inference_steps=1",
        "samples.guidance_scale=null",
    ]
    file = str(recipe.builtin_recipes_folder() / f"{RECIPES[row]}.yaml")
    return [
        "train",
        file,
        *paths,
        "resolution=64",
        "optimizer.warmup=0",
        *command_lines.FEWER,
        *sampling,
        *more,
    ]


@pytest.mark.parametrize("row", RECIPES)
def test_from_photos_to_samples(row, photos, tmp_path):
    run, base = tmp_path / "run", str(tiny.tiny_folder(row))
    sample = ["sample", base, "--prompts", str(tmp_path / "prompts.jsonl"), "--adapter", f"{run}:0.8"]
    sample += [
        "--num-inference-steps",
        "1",
        "--size",
        "64x64",
        "--quiet",
        "--out",
        str(tmp_path / "samples"),
    ]
    lines = [_line(row, photos, tmp_path, "export=[]"), ["export", str(run), "--for", "all"], sample]
    command_lines.play(lines, {}, launched=False, compared=row in ("qwen-image", "glm-image"))
    metadata = adapters.read_adapter_metadata(run / "adapter.safetensors")
    assert (metadata["family"], metadata["rank"]) == (family_of(row).name, 16)
    no_gradient = tiny.ROWS[row].no_gradient
    for name, value in storage.read_safetensors(run / "adapter.safetensors").items():
        assert value.any() or (no_gradient and re.search(no_gradient, name)), name
    assert len(list((run / "samples/step-00000004").glob("*.png"))) == 1
    assert len(list((run / "exports").glob("*.safetensors"))) > 0
    (file,) = (tmp_path / "samples").glob("*.png")
    with Image.open(file) as image:
        assert image.size == (64, 64)
        assert max(high - low for low, high in image.getextrema()) > 0  # in some channel
    shutil.rmtree(run)


@pytest.mark.parametrize("row", RECIPES if command_lines.SLOW else ["chroma"])
def test_recipes_train_through_accelerate(row, photos, tmp_path):
    """The whole `lorakit train`; a launch is mostly imports, so all recipes run only in the slow tier,
    `LORAKIT_SLOW_TESTS=1 pytest tests/models/families/test_end_to_end.py`."""
    exports = [name for name in consumers.CONSUMERS if name in consumers.loader_rules(family_of(row).name)]
    command_lines.run(_line(row, photos, tmp_path, f"export={json.dumps(exports)}"))
    assert storage.read_json(tmp_path / "run/run.json")["status"] == "done"
    assert len(list((tmp_path / "run/exports").glob("*.safetensors"))) > 0
