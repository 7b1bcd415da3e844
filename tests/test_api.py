"""The public API: light to import, typed, without side effects, and the Python of the README."""

from __future__ import annotations

import inspect
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lorakit
from lorakit.core import storage
from tests import runs
from tests.data_tools.folders import photo

ROOT = Path(__file__).parent.parent
TINY = {
    "base": "tiny-dit",
    "resolution": 64,
    "adapter": {"rank": 4, "alpha": 4},
    "train": {"steps": 4, "save_every": 2, "precision": "fp32"},
    "export": ["diffusers"],
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        photo(index, (96, 80)).save(folder / f"{index}.png")
    return folder


def test_import_loads_neither_torch_nor_anything_heavy():
    heavy = {"torch", "numpy", "PIL", "pydantic", "yaml", "diffusers", "rich", "click", "accelerate"}
    code = f"import sys, lorakit; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_importable_and_documented():
    for name in lorakit.__all__:
        value = getattr(lorakit, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert set(dir(lorakit)) == set(lorakit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lorakit.trian
    assert (Path(lorakit.__file__).parent / "py.typed").is_file()


def test_prepare_returns_the_dataset_with_its_findings(photos, capsys):
    dataset = lorakit.prepare(photos, resolution=64, class_noun="dog", trigger="sks")
    assert isinstance(dataset, lorakit.Dataset)
    assert len(dataset.kept) == 4
    assert all(finding.code for finding in dataset.findings)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(lorakit.ConfigError, match="unknown option 'class_nuon'; did you mean 'class_noun'"):
        lorakit.prepare(photos, class_nuon="dog")


def test_train_prints_nothing_and_leaves_no_global_state(photos, tmp_path, capsys):
    settings = {"dataset": photos, "out": tmp_path / "run", "class_noun": "dog", "trigger": "sks"}
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run = lorakit.train(TINY, **settings)
    assert capsys.readouterr() == ("", "")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not torch.are_deterministic_algorithms_enabled()
    assert (run.status, run.step) == ("done", 4)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [2, 4]
    assert run.recipe.optimizer.lr == 1e-4
    assert run.adapter.is_file()
    assert lorakit.Run(run.path).metrics == run.metrics
    (exported,) = run.checkpoints[0].export("diffusers")
    assert lorakit.Adapter.load(exported).rank == 4


def test_train_changes_single_keys_of_a_section_and_resumes(photos, tmp_path):
    settings = {"dataset": photos, "out": tmp_path / "run", "class_noun": "dog", "trigger": "sks"}
    run = lorakit.train(TINY, **settings, optimizer={"lr": 2e-4})
    assert (run.recipe.optimizer.lr, run.recipe.optimizer.name) == (2e-4, "adamw8bit")
    first = run.adapter.read_bytes()
    assert lorakit.train(run.recipe).adapter.read_bytes() == first  # it is finished
    with pytest.raises(lorakit.ConfigError, match=r"optimizer\.lrr: unknown key; did you mean 'lr'"):
        lorakit.train(TINY, **settings, optimizer={"lrr": 2e-4})
    with pytest.raises(lorakit.ConfigError, match="did you mean 'sd15'"):
        lorakit.train("sd15x")


def test_the_python_of_the_readme_works(photos, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    tiny = storage.write_json(tmp_path / "sd15.yaml", TINY | {"dataset": "d", "out": "o"})
    assert tiny.is_file()  # a recipe of that name in the working folder comes before the built-in one
    (tmp_path / "examples").mkdir()
    runs.make_prompts(tmp_path / "examples/prompts.jsonl")
    monkeypatch.chdir(tmp_path)
    values: dict[str, object] = {}
    exec(code.replace("resolution=512", "resolution=64"), values)
    assert values["image"].size == (64, 64)
    assert list((tmp_path / "runs/dog/exports").glob("step-*/*.safetensors"))
