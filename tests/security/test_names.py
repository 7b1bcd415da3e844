"""Where a run or an export is written: names that every system takes, a folder that can be written, room."""

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
    made = recipe.parse_recipe({"base": "tiny-dit", "dataset": str(data), "out": str(out)})
    RunFolder(made.out).check_places(made)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_81_a_name_that_other_systems_refuse(name, data, tmp_path):
    for out in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(ConfigError, match="no name that every system takes"):
            check(out, data)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["x" * 256, "й" * 128, "/".join(["x" * 200] * 21)])
def test_81_a_name_that_is_too_long(name, data, tmp_path):
    with pytest.raises(ConfigError, match="too long"):
        check(tmp_path / name, data)


def test_81_dots_are_resolved_and_what_is_there_already_is_the_users_own(data, tmp_path, monkeypatch):
    (tmp_path / "a:b" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a:b" / "here")
    check("../../x", data)
    check("run", data)
    with pytest.raises(ConfigError, match="lie in each other"):
        check("../../data/run", data)


@pytest.mark.parametrize("name", ["con", "a:b", "x" * 256])
def test_81_an_export_is_refused_before_the_adapter_is_read(name, tmp_path):
    with pytest.raises(ConfigError, match=r"no name that every system takes|too long") as caught:
        formats.export_adapter(tmp_path / "missing.safetensors", "all", tmp_path / name)
    assert "out: " in str(caught.value)


@pytest.mark.parametrize("place", ["data", "data/in/side", "file", "file/run", "full", "parent"])
def test_51_places_that_would_mix_with_other_files(place, data, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    inside = runs.make_dataset(tmp_path / "parent" / "data", 2) if place == "parent" else data
    with pytest.raises(ConfigError, match="out"):
        check(tmp_path / place, inside)
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", data)


def test_51_a_link_into_the_dataset_is_seen_through(data, tmp_path):
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(ConfigError, match="lie in each other"):
        check(tmp_path / "link" / "run", data)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match="out"):
        check(tmp_path / "loop", data)


def test_51_a_folder_that_may_not_be_written(data, tmp_path, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and allowed(path, mode))
    with pytest.raises(DiskError, match="cannot write to") as caught:
        check(tmp_path / "new" / "run", data)
    assert caught.value.exit_code == 5


def test_51_a_disk_without_room(data, tmp_path, monkeypatch):
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(1 << 30, 1 << 30, output_paths.MIN_FREE_BYTES - 1)
    )
    with pytest.raises(DiskError, match="only 63 MiB are free"):
        check(tmp_path / "run", data)


def test_51_the_command_refuses_before_anything_is_prepared(tmp_path, monkeypatch, capsys):
    """A plain folder of pictures stays as it is when the run cannot start."""
    data = runs.make_dataset(tmp_path / "data", 2)
    for name in ("manifest.jsonl", "metadata.jsonl"):
        (data / name).unlink(missing_ok=True)
    before = sorted(path.name for path in data.iterdir())
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, data / "run")
    assert main.main(["train", str(file)]) == 2
    assert "lie in each other" in capsys.readouterr().err
    assert sorted(path.name for path in data.iterdir()) == before


def test_50_a_run_in_a_folder_with_blanks_and_cyrillic_letters(tmp_path):
    place = tmp_path / "мои фото 1"
    data = runs.make_dataset(place / "данные пса", 2)
    prompts = runs.make_prompts(place / "подсказки.jsonl")
    changes: dict[str, Any] = {"samples": {"prompts": str(prompts), "every": 1, "steps": 1}, "trigger": "пёс"}
    changes["train"] = {"steps": 1, "precision": "fp32"}
    file = runs.make_recipe(place / "рецепт пса.yaml", "tiny-dit", data, place / "выход", **changes)
    run = runs.train(file)
    assert (run / "adapter.safetensors").exists()
    assert recipe.load_recipe(run / "recipe.yaml").out == run
