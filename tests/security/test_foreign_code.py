"""No code of a file is executed: pickles are never opened, and a base model's own code is never imported."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core.errors import LorakitError
from lorakit.models import base_model, families
from lorakit.training import run_plan
from tests import runs
from tests.security.files import Payload, pickled

NAMES = ("evil.bin", "evil.pt", "evil.pth", "evil.ckpt", "evil.safetensors")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_the_payload_is_executed_when_it_is_unpickled(canary):
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists()


def export(file: Path, folder: Path) -> list[str]:
    return ["export", str(file), "--out", str(folder / "out")]


def sample(file: Path, folder: Path) -> list[str]:
    prompts = runs.make_prompts(folder / "p.jsonl")
    where = ["--prompts", str(prompts), "--out", str(folder / "out")]
    return ["sample", "tiny-dit", "--adapter", str(file), *where]


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize("command", [export, sample])
@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_as_an_adapter_is_refused(name, command, archive, canary, tmp_path, capsys):
    file = tmp_path / name
    file.write_bytes(pickled(canary, archive=archive))
    assert main.main(command(file, tmp_path)) == 3
    assert "pickled .ckpt/.bin/.pt files are never opened" in capsys.readouterr().err
    assert not canary.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_to_start_from_or_as_a_base_is_refused(name, canary, tmp_path):
    file = tmp_path / name
    file.write_bytes(pickled(canary, archive=True))
    data = runs.make_dataset(tmp_path / "data", 2)
    for changes in ({"init_from": str(file)}, {"base": str(file)}):
        tree = {"base": "tiny-dit", "dataset": str(data), "out": str(tmp_path / "run"), "resolution": 64}
        with pytest.raises(LorakitError) as caught:
            run_plan.plan_training(recipe.parse_recipe(tree | changes), lambda text: None)
        assert caught.value.exit_code in (2, 3)
    assert not canary.exists()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_model.EMBEDDED_FOLDER / "tiny-unet", tmp_path / "base"))


def load(base: Path) -> None:
    folder = base_model.resolve_base(str(base))
    families.detect_family(folder).load(folder, dtype=torch.float32)


def refused(base: Path) -> str:
    began = time.monotonic()
    with pytest.raises(LorakitError) as caught:
        load(base)
    assert time.monotonic() - began < 10  # includes the import of the libraries
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_a_pickle_as_the_only_weights_of_a_component_is_refused(suffix, base, canary):
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(suffix).write_bytes(pickled(canary, archive=True))
    assert "only pickled weights, which are never opened" in refused(base)
    assert not canary.exists()


def test_a_pickle_beside_safetensors_is_not_opened(base, canary):
    for name in ("diffusion_pytorch_model.bin", "model.pt", "scheduler.pkl"):
        (base / "unet" / name).write_bytes(pickled(canary, archive=True))
    load(base)
    assert not canary.exists()


def test_a_pickle_named_safetensors_as_a_component_is_refused(base, canary):
    (base / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(pickled(canary, archive=False))
    assert "never opened" in refused(base)
    assert not canary.exists()


CODE = "from pathlib import Path\nPath({!r}).touch()\nclass EvilTokenizer:\n    pass\n"


def _own_pipeline(base: Path, code: str) -> None:
    (base / "pipeline.py").write_text(code)
    _rewrite(base / base_model.MODEL_INDEX, _class_name=["pipeline", "Evil"])


def _own_component(base: Path, code: str) -> None:
    (base / "tokenizer" / "evil.py").write_text(code)
    _rewrite(base / base_model.MODEL_INDEX, tokenizer=["evil", "EvilTokenizer"])


def _module_beside_the_command(base: Path, code: str) -> None:
    (Path.cwd() / "evil.py").write_text(code)
    _rewrite(base / base_model.MODEL_INDEX, tokenizer=["evil", "EvilTokenizer"])


def _remote_tokenizer(base: Path, code: str) -> None:
    (base / "tokenizer" / "evil.py").write_text(code)
    _rewrite(base / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})


def _rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "trick", [_own_pipeline, _own_component, _module_beside_the_command, _remote_tokenizer]
)
def test_code_of_a_base_is_never_run(trick: Callable[[Path, str], None], base, canary, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))  # as `python -m` has it
    trick(base, CODE.format(str(canary)))
    refused(base)
    assert not canary.exists()
