"""The generated reference is current, and its tables of JSON answers are what the commands print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorakit.adapters.formats.verify import ExportedFile
from lorakit.cli import main
from lorakit.cli.json_answers import JSON_ANSWERS
from lorakit.cli.reference import reference_page
from lorakit.core import errors
from tests import runs
from tests.adapters.formats import runs as adapter_files
from tests.data_tools.folders import fill

ROOT = Path(__file__).parents[2]


def keys_of(command: str) -> set[str]:
    return {key for names in JSON_ANSWERS[command] for key in names.split(", ")}


def answer(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, object]:
    capsys.readouterr()
    assert main.main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_reference_is_current():
    written = (ROOT / "examples/reference.md").read_text(encoding="utf-8")
    assert written == reference_page(), "run `lorakit recipe reference --out examples/reference.md`"


def test_every_exit_code_is_listed():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.LorakitError)}
    for code in codes:
        assert f"\n| {code} |" in reference_page()


def test_data_commands_print_the_listed_keys(tmp_path, capsys):
    fill(tmp_path, {"a.png": "a dog", "b.png": "a cat"})
    prepared = answer(capsys, "data", "prepare", str(tmp_path), "--class-noun", "dog", "--resolution", "64")
    listed = keys_of("data prepare, scan, merge, caption, bucket, mask, control")
    assert prepared.keys() == listed - {"conditioning_images", "captioner"}
    assert answer(capsys, "data", "check", str(tmp_path)).keys() == keys_of("data check")
    out = str(tmp_path.with_name("exported"))
    exported = answer(capsys, "data", "export", str(tmp_path), "--to", "imagefolder", "--out", out)
    assert exported.keys() == keys_of("data import, export")


def test_adapter_commands_print_the_listed_keys(tmp_path, capsys):
    file = str(tmp_path / "adapter.safetensors")
    adapter_files.train("sd15", Path(file))
    assert answer(capsys, "inspect", file).keys() == keys_of("inspect")
    assert answer(capsys, "check", file, "--for", "diffusers", code=3).keys() == keys_of("check")
    converted = answer(capsys, "convert", file, str(tmp_path / "k.safetensors"), "--to", "kohya")
    assert converted.keys() == keys_of("convert")


def test_exported_files_have_the_listed_keys():
    exported = ExportedFile(Path("a"), ("comfyui",), "native", 2, 0.0)
    assert exported.to_json().keys() == keys_of("convert")


def test_prompts_command_prints_the_listed_keys(tmp_path, capsys):
    folder = runs.make_dataset(tmp_path / "photos")
    words = ["eval", "prompts", str(folder), "--class-noun", "dog", "--trigger", "sks"]
    assert answer(capsys, *words, "--out", str(tmp_path / "p.jsonl")).keys() == keys_of("eval prompts")
