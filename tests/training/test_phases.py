"""What a session says while it works, and at its end."""

from __future__ import annotations

import shlex
import time

import pytest

from lorakit.config import recipe as recipes
from lorakit.core import storage, supervision
from lorakit.training import phases
from lorakit.training.run_folder import RunFolder
from tests import commands


@pytest.mark.parametrize(("ago", "line"), [(51.2, "51 s: x"), (125, "2:05: x"), (3700, "1:01:40: x")])
def test_the_time_counts_from_the_start_of_the_command(ago, line, monkeypatch):
    phases.begin_session()
    monkeypatch.setenv(supervision.STARTED_VARIABLE, repr(time.monotonic() - ago))
    assert phases.phase("x") == line


@pytest.mark.parametrize("started", ["", "nan", "inf", "soon", "-1e12", "1e12"])
def test_a_start_that_cannot_be_is_ignored(started, monkeypatch):
    phases.begin_session()
    monkeypatch.setenv(supervision.STARTED_VARIABLE, started)
    assert phases.phase("x") == "0 s: x"


@pytest.mark.parametrize("prompts", [None, "p.jsonl"])
@pytest.mark.parametrize("name", ["run", "my run", "it's"])
def test_the_last_lines_name_the_results_and_a_command_that_works(name, prompts, tmp_path):
    run = RunFolder(tmp_path / name)
    samples = {"prompts": str(tmp_path / prompts), "every": 1} if prompts else {}
    recipe = recipes.parse_recipe(
        {"base": "tiny-dit", "dataset": "data", "out": str(run.path), "samples": samples}
    )
    storage.write_text(run.path / "report.html", "")
    export = storage.write_bytes(run.path / "exports" / "adapter-diffusers.safetensors", b"")
    done, report, exported, following = phases.done_lines(run, recipe).splitlines()
    assert done.startswith("done in ")
    assert done.endswith(str(run.adapter_file))
    assert report == f"  report: {run.path / 'report.html'}"
    assert exported == f"  export: {export}"
    lines = following.removeprefix("  next: ").split(", then ")
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "lorakit"
        with commands.parse(words[1:]) as context:
            assert str(run.path) in map(str, context.params.values())
    assert len(lines) == (1 if prompts else 2)
