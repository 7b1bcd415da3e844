"""Output paths of runs and exports: portable names, write permission, free space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lorakit.adapters import formats
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import output_paths
from lorakit.core.errors import ConfigError, DiskError
from lorakit.training.run_folder import RunFolder
from tests import runs

BAD_NAMES = ["con", "CON", "nul.txt", "Com1", "a:b", "a|b", "a?", "a*", 'a"b', "<a>", "a\\b", "a\nb", "dot."]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return runs.make_dataset(tmp_path / "data", 2)


def check(out: Path | str, data: Path) -> None:
    parsed = recipe.parse_recipe({"base": "tiny-dit", "dataset": str(data), "out": str(out)})
    RunFolder(parsed.out).check_paths(parsed)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_invalid_on_some_system_is_refused(name, data, tmp_path):
    for out in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(ConfigError, match="not a valid file name on every operating system"):
            check(out, data)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["x" * 256, "й" * 128, "/".join(["x" * 200] * 21)])
def test_a_name_that_is_too_long_is_refused(name, data, tmp_path):
    with pytest.raises(ConfigError, match="too long"):
        check(tmp_path / name, data)


def test_dots_are_resolved_and_existing_parent_folders_may_have_any_name(data, tmp_path, monkeypatch):
    (tmp_path / "a:b" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a:b" / "here")
    check("../../x", data)
    check("run", data)
    with pytest.raises(ConfigError, match="is inside the other"):
        check("../../data/run", data)


@pytest.mark.parametrize("name", ["con", "a:b", "x" * 256])
def test_an_export_is_refused_before_the_adapter_is_read(name, tmp_path):
    with pytest.raises(
        ConfigError, match=r"not a valid file name on every operating system|too long"
    ) as caught:
        formats.export_adapter(tmp_path / "missing.safetensors", "all", tmp_path / name)
    assert "out: " in str(caught.value)


@pytest.mark.parametrize("folder", ["data", "data/in/side", "file", "file/run", "full", "parent"])
def test_output_folders_that_would_mix_with_other_files_are_refused(folder, data, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    inside = runs.make_dataset(tmp_path / "parent" / "data", 2) if folder == "parent" else data
    with pytest.raises(ConfigError, match="out"):
        check(tmp_path / folder, inside)
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", data)


def test_a_link_into_the_dataset_is_resolved(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(ConfigError, match="is inside the other"):
        check(tmp_path / "link" / "run", data)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="out"):
        check(tmp_path / "loop", data)


def test_a_read_only_output_folder_is_refused(data, tmp_path, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    with pytest.raises(DiskError, match="cannot write to") as caught:
        check(tmp_path / "new" / "run", data)
    assert caught.value.exit_code == 5


def test_a_disk_without_space_is_refused(data, tmp_path, monkeypatch):
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(1 << 30, 1 << 30, output_paths.MIN_FREE_BYTES - 1)
    )
    with pytest.raises(DiskError, match="only 63 MiB are free"):
        check(tmp_path / "run", data)


def test_the_command_refuses_before_anything_is_prepared(tmp_path, monkeypatch, capsys):
    """A plain folder of images is not changed if the run cannot start."""
    data = runs.make_dataset(tmp_path / "data", 2)
    for name in ("manifest.jsonl", "metadata.jsonl"):
        (data / name).unlink(missing_ok=True)
    before = sorted(path.name for path in data.iterdir())
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, data / "run")
    assert main.main(["train", str(file)]) == 2
    assert "is inside the other" in capsys.readouterr().err
    assert sorted(path.name for path in data.iterdir()) == before


def test_a_folder_with_spaces_and_cyrillic_letters_works(tmp_path):
    folder = tmp_path / "мои фото 1"
    data = runs.make_dataset(folder / "данные пса", 2)
    prompts = runs.make_prompts(folder / "подсказки.jsonl")
    changes: dict[str, Any] = {
        "samples": {"prompts": str(prompts), "every": 1, "num_inference_steps": 1},
        "trigger": "пёс",
    }
    changes["train"] = {"steps": 1, "precision": "fp32"}
    file = runs.make_recipe(folder / "рецепт пса.yaml", "tiny-dit", data, folder / "выход", **changes)
    run = runs.train(file)
    assert (run / "adapter.safetensors").exists()
    assert recipe.load_recipe(run / "recipe.yaml").out == run
