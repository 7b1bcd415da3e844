"""The `lorakit data` commands as a user types them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from data_tools.cli import COMMANDS
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.cli import main
from lorakit.core.errors import ConfigError
from tests.commands import call_data as call
from tests.data_tools.folders import fill


def test_importing_the_commands_loads_nothing_heavy() -> None:
    program = (
        "import sys, data_tools.cli;"
        "print([name for name in ('PIL', 'numpy', 'pydantic', 'torch', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_preparing_loads_no_torch(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": "one"})
    program = (
        "import sys; from data_tools.prepare import prepare_dataset, PrepareOptions;"
        f"prepare_dataset({str(tmp_path)!r}, PrepareOptions(resolution=64, quiet=True));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_prepare_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    assert (
        call("prepare", str(tmp_path), "--class-noun", "dog", "--trigger", "sks", "--resolution", "64") == 0
    )
    out = capsys.readouterr().out
    assert "2 images, 2 kept, 0 excluded" in out
    assert "template x 2" in out
    assert f"report     {tmp_path / 'report.html'}" in out
    assert call("prepare", str(tmp_path), "--resolution", "64", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert call("prepare", str(tmp_path), "--resolution", "64", "--json", "--quiet", "--no-report") == 0
    assert json.loads(capsys.readouterr().out)["captions"] == {"template": 2}


@pytest.mark.parametrize(
    ("level", "clean", "warned", "broken"), [("error", 0, 0, 3), ("warning", 0, 3, 3), ("never", 0, 0, 0)]
)
def test_check_answers_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], level: str, clean: int, warned: int, broken: int
) -> None:
    size = ("--resolution", "64")
    words = ("a red house", "some green hills", "one blue boat", "an old bridge", "two yellow birds")
    fill(tmp_path, {f"{number}.png": text for number, text in enumerate(words)}, size=(64, 64))
    assert call("check", str(tmp_path), *size, "--fail-on", level, "--quiet") == clean
    (tmp_path / "lonely.txt").write_text("x")
    assert call("check", str(tmp_path), *size, "--fail-on", level, "--quiet") == warned
    (tmp_path / "bad.png").write_bytes(b"")
    capsys.readouterr()
    assert call("check", str(tmp_path), *size, "--fail-on", level, "--json") == broken
    value = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in value["findings"]] == ["empty", "orphan_caption"]
    assert not (tmp_path / manifest.MANIFEST_FILE).exists()


def test_the_steps_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None})
    folder = str(tmp_path)
    assert call("scan", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert call("caption", folder, "--trigger", "sks", "--quiet") == 0
    assert manifest.load_manifest(folder)[0].caption == "a photo of sks"
    assert call("bucket", folder, "--resolution", "128", "--bucket-mode", "square", "--quiet") == 0
    assert manifest.load_manifest(folder)[0].bucket == (128, 128)
    assert call("report", folder) == 0
    assert (tmp_path / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out


def test_shards_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(fill(tmp_path, {"a.png": "one", "b.png": "two", "c.png": "three"}))
    for shard, images in (("1/2", 2), ("2/2", 1)):
        assert call("scan", folder, "--shard", shard, "--json") == 0
        assert json.loads(capsys.readouterr().out)["images"] == images
    assert call("merge", folder, "--quiet") == 0
    assert [record.file for record in manifest.load_manifest(folder)] == ["a.png", "b.png", "c.png"]


def test_in_and_out_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "in", {"a.png": "one", "b.jpg": "two"})
    assert call("prepare", str(folder), "--quiet", "--no-report", "--resolution", "64") == 0
    tars = tmp_path / "tars"
    assert call("export", str(folder), "--to", "webdataset", "--out", str(tars), "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_images"] == 2
    assert call("import", str(tmp_path / "back"), str(tars / "00000.tar")) == 0
    assert "2 images, 2 caption or metadata files" in capsys.readouterr().out
    assert manifest.load_manifest(tmp_path / "back") == manifest.load_manifest(folder)
    assert (
        call("export", str(folder), "--to", "kohya", "--folder-name", "sks dog", "--out", str(tmp_path / "k"))
        == 0
    )
    assert (tmp_path / "k/1_sks dog/b.txt").read_text() == "two"


def test_held_out_images_by_command(tmp_path: Path) -> None:
    fill(tmp_path / "data", {f"{number}.png": f"thing number {number}" for number in range(5)}, size=(64, 64))
    fill(tmp_path / "held", {"z.png": None}, size=(64, 64))
    command = ("check", str(tmp_path / "data"), "--resolution", "64", "--quiet", "--fail-on", "warning")
    assert call(*command) == 0
    assert call(*command, "--held-out", str(tmp_path / "held")) == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["data", name, "--help"]) == 0
    assert re.search(rf"Examples?:\n  lorakit data {name}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["check", "--max-aspect-ratio", "nan"], "use 8"),
        (["scan", "--max-aspect-ratio", "0.5"], "use 8"),
        (["prepare", "--max-aspect-ratio", "inf"], "use 8"),
        (["bucket", "--crops", "absent.jsonl"], "correct --crops"),
        (["caption", "--model", "m", "--threshold", "7"], "use 0.35"),
        (["caption", "--model", "m", "--timeout", "nan"], "use 1"),
    ],
)
def test_impossible_options_are_refused_with_a_remedy(tmp_path: Path, words: list[str], remedy: str) -> None:
    fill(tmp_path, {"a.png": "one"})
    prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, report=False))
    before = (tmp_path / manifest.MANIFEST_FILE).read_bytes()
    with pytest.raises(ConfigError) as caught:
        call(words[0], str(tmp_path), *words[1:])
    assert remedy in str(caught.value.remedy)
    assert (tmp_path / manifest.MANIFEST_FILE).read_bytes() == before


def test_bad_numbers_are_usage_errors(tmp_path: Path) -> None:
    for words in (
        ["--resolution", "0"],
        ["--batch-size", "-1"],
        ["--bucket-mode", "best"],
        ["--workers", "0"],
    ):
        with pytest.raises(click.UsageError):
            call("prepare", str(tmp_path), *words)
        assert main.main(["data", "prepare", str(tmp_path), *words]) == 2
