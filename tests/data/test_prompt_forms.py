"""Prompt files of other tools: each form is read by its content, and what is not understood is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorakit.core.errors import DataError
from lorakit.data.prompts import Prompt, load_prompts, prompt_to_row
from lorakit.data.subjects import Subject


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def settings(prompt: Prompt) -> dict[str, Any]:
    """The row of a prompt without its id and defaults."""
    defaults = {"seeds": [0, 1, 2, 3], "kind": "subject"}
    row = prompt_to_row(prompt)
    return {key: value for key, value in row.items() if key != "id" and defaults.get(key) != value}


DOG = {"prompt": "a dog"}
FULL = DOG | {"negative": "blurry", "width": 96, "height": 64, "num_inference_steps": 28}
FULL |= {"guidance_scale": 7.5, "seeds": [1]}
INFOTEXT = """a dog
Negative prompt: blurry
Steps: 28, Sampler: Euler a, CFG scale: 7.5, Seed: 1, Size: 96x64, Model hash: 45dee52b
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog --n blurry --w 96 --h 64 --d 1 --l 7.5 --s 28", FULL),
        ("a dog --n blurry --w 96 --h 64 --d 1 --g 7.5 --l 1 --s 28", FULL),  # kohya's Flux
        ("a dog --n blurry --w 96 --h 64 --seed 1 --cfg 7.5 --steps 28", FULL),  # ai-toolkit
        (
            '--prompt "a dog" --negative_prompt "blurry" --steps 28 --cfg_scale 7.5 --seed 1 --width 96'
            ' --height 64',
            FULL,
        ),
        (
            "--prompt 'a dog -- red' --width=96",
            {"prompt": "a dog -- red", "width": 96},
        ),
        (INFOTEXT, FULL),
        ("prompt,negative prompt,size,steps,cfg,seed\na dog,blurry,96x64,28,7.5,1\n", FULL),
        ("Prompt;Seed;Steps\n'a dog';;28\n".replace("'", '"'), DOG | {"num_inference_steps": 28}),
        ("sep=;\nPrompts;Category\na dog;Animals\n", DOG | {"kind": "Animals"}),
        ("'prompt','seed'\n'a dog','4'\n", DOG | {"seeds": [4]}),
        ('prompt\n"a dog, a ""big"" one"\n', {"prompt": 'a dog, a "big" one'}),
        ("prompt\na dog, red\n", {"prompt": "a dog, red"}),
        ("id|prompt|seed\nx|a dog|4\n", DOG | {"seeds": [4]}),
        ('{"text": "a dog", "negative_prompt": "blurry", "size": [96, 64], "steps": 28, "cfg": 7.5,'
         ' "seed": 1}', FULL),
        ('["a dog --d 4"]', DOG | {"seeds": [4]}),
        ('[{"prompt": "a dog", "seed": -1, "sample_steps": 28, "enum": 0}]',
         DOG | {"num_inference_steps": 28}),
        ('{"x": "a dog"}', DOG),
        ('{"x": {"category": "Animals", "prompt": "a dog"}}', DOG | {"kind": "Animals"}),
        ('{"prompts": ["a dog"], "seed": 3}', DOG | {"seeds": [3]}),
        ('{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}',
         DOG | {"kind": "single_object"}),
        ('[prompt]\nwidth = 96\nheight = 64\n[[prompt.subset]]\nprompt = "a dog"\nsample_steps = 28\n',
         DOG | {"width": 96, "height": 64, "num_inference_steps": 28}),
        ('prompts = ["a dog"]\n', DOG),
        ("- a dog --d 4\n", DOG | {"seeds": [4]}),
        ("sample:\n  seed: 4\n  walk_seed: true\n  width: 96\n  prompts:\n  - a dog\n",
         DOG | {"seeds": [4], "width": 96}),
        ("prompt: a dog\nseed: 4\n", DOG | {"seeds": [4]}),
        ("/imagine prompt: a dog --ar 3:2 --no text --seed 4 --v 6 --s 250",
         DOG | {"negative": "text", "aspect_ratio": 1.5, "seeds": [4]}),
        ("a dog, on grass, --d 7", {"prompt": "a dog, on grass", "seeds": [7]}),
        (r"saber \(fate\), smile", {"prompt": "saber (fate), smile"}),
        ("a man (left) at 10:30 -- a clock", {"prompt": "a man (left) at 10:30 -- a clock"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["p.txt", "p"])
def test_options_and_keys_of_other_tools_are_read(
    tmp_path: Path, name: str, text: str, expected: dict[str, Any]
) -> None:
    assert [settings(prompt) for prompt in load_prompts(write(tmp_path, name, text))] == [expected]


TWO = ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# prompt 1\na dog\n\n  # prompt 2\na cat\n", "2 lines that start with # are comments, from line 1"),
        ("1. a dog\n2. a cat\n", "numbers before the prompts are not sampled"),
        ("* a dog\n* a cat\n", "marks before the prompts are not sampled"),
        ('"a dog",\n"a cat",\n', "quotation marks around the prompts are not sampled"),
        ('# c\n{"prompt": "a dog", "sampler": "x"}\n# d\n{"prompt": "a cat"}\n', "sampler (1x)"),
        ("# c\nprompt\tChallenge\na dog\tBasic\n# d\na cat\tBasic\n", "Challenge (2x)"),
        ("- a dog --ss euler # c\n# d\n- a cat\n", "--ss (1x)"),
        ("# c\na dog\nSteps: 2, Sampler: Euler, Seed: 1\n\n# d\na cat\nSteps: 2, Sampler: X, Seed: 1",
         "sampler (2x)"),
    ],
)  # fmt: skip
def test_comments_and_marks_never_shift_ids_and_what_is_not_used_is_named(
    tmp_path: Path, text: str, words: str
) -> None:
    lines: list[str] = []
    prompts = load_prompts(write(tmp_path, "p.txt", text), log=lines.append)
    assert [(p.id, p.prompt) for p in prompts] == list(zip(["0001", "0002"], TWO, strict=True))
    assert words in "\n".join(lines)


@pytest.mark.parametrize("name", ["p.json", "p.yaml", "p.csv", "p.toml", "p.jsonl"])
def test_content_decides_and_a_name_that_says_otherwise_is_mentioned(tmp_path: Path, name: str) -> None:
    lines: list[str] = []
    text = json.dumps(TWO) if name == "p.csv" else "a dog\na cat\n"
    prompts = load_prompts(write(tmp_path, name, text), log=lines.append)
    assert [p.prompt for p in prompts] == TWO
    assert "which the name does not say" in lines[0]


def test_an_own_option_comes_before_a_shared_one(tmp_path: Path) -> None:
    text = "sample:\n  seed: 42\n  walk_seed: true\n  prompts:\n    - a dog\n    - a cat\n    - an ox --d 5\n"
    prompts = load_prompts(write(tmp_path, "p.yaml", text))
    assert [p.seeds for p in prompts] == [(42,), (43,), (5,)]


@pytest.mark.parametrize(
    ("name", "text", "place", "words", "remedy"),
    [
        ("p.txt", "a dog --am 0.8", "line 1", "strength of an adapter", "--adapter FILE:STRENGTH"),
        ("p.txt", "a dog --cn pose.png", "line 1", "it is an image", "`image`"),
        ("p.txt", "a dog --p2 x --d 1", "line 1", "second text encoder", "one prompt"),
        ("p.txt", "a dog --d 1 --xyz 2", "line 1", "--xyz 2", "remove it"),
        ("p.txt", "a cat\na dog --xyz 2", "line 2", "--xyz 2", "remove it"),
        ("p.txt", "a dog --d one", "line 1", "seeds 'one'", "[0, 1, 2, 3]"),
        ("p.txt", "a dog --s 0", "line 1", "num_inference_steps '0'", "1 to 1000"),
        ("p.txt", "a dog --w 1e9", "line 1", "width '1e9'", "whole number"),
        ("p.txt", "a dog --l high", "line 1", "guidance_scale 'high'", "7.5"),
        ("p.txt", "a dog --ar wide", "line 1", "aspect_ratio 'wide'", "3:2"),
        ("p.txt", "a <lora:style:0.8> dog", "line 1", "tag of a network", "remove it"),
        ("p.txt", "a (red:1.3) dog", "line 1", "attention syntax", "write the word alone"),
        ("p.txt", "a {red|blue} dog", "line 1", "wildcard", "write one of its words"),
        ("p.txt", "{red|blue} dog", "line 1", "wildcard", "write one of its words"),
        ("p.txt", "a dog\n__animal__", "line 2", "wildcard", "write one of its words"),
        ("p.txt", "embedding:nice dog", "line 1", "embedding", "write the words"),
        ("p.txt", "[trigger] dog", "line 1", "none is known", "write the trigger word"),
        ("p.txt", "a photo of {}", "line 1", "placeholder", "write the words"),
        ("p.jsonl", '{"prompt": "a", "negative": "(bad:1.4)"}', "line 1", "attention syntax", "alone"),
        ("p.jsonl", '{"prompt": "a --n b", "negative": "c"}', "line 1", "negative is given twice", "one of"),
        ("p.jsonl", '{"prompt": "a", "stepps": 3}', "line 1", "did you mean 'steps'", "known keys"),
        ("p.tsv", "Prompt\tCategory\na <lora:x:1>\tb\n", "line 2", "tag of a network", "remove it"),
        ("p.json", '["a", 5]', "entry 2", "a string or a mapping", "quotes"),
        ("p.json", '{"a": 1}', "p.json", "not a JSON list", "write a list"),
        ("p.json", '{"name": "x", "version": "1"}', "p.json", "not a JSON list", "write a list"),
        ("p.json", '{"3": {"class_type": "KSampler", "inputs": {}}}', "p.json", "a workflow", "list"),
        ("p.json", '[{"prompt": "a", "foo": 1}]', "entry 1", "unknown key 'foo'", "known keys"),
        ("p.txt", '["a",\n"b"', "p.txt", "not valid JSON", "double quotes"),
        ("p.toml", 'promts = ["a"]\n', "p.toml", "not a list of prompts", "[[prompt.subset]]"),
        ("p.toml", "[prompt\n", "p.toml", "not valid TOML", ""),
        ("p.csv", "promt,seed\na dog,4\n", "line 1", "no column named Prompt among 'promt'", ""),
        ("p.csv", "a dog,4\na cat,5\n", "line 1", "no column named Prompt", "prompt,"),
        ("p.txt", "a dog\tx\na cat\ty\n", "line 1", "no column named Prompt", "prompt,"),
        ("p.csv", "prompt,seed\na dog, red,4\n", "line 2", "3 cells under 2", "double quotes"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1", "two columns are named 'prompt'", "rename"),
        ("p.txt", "<!DOCTYPE html>\n<html><p>a dog</p></html>", "line 1", "markup", "a line"),
        ("p.txt", "a dog\n<br>a cat", "line 2", "markup", "one prompt a line"),
        ("p.txt", "import os\nfor x in y:\n    print(x)\n", "line 1", "code of a program", "a line"),
        ("p.txt", "['a dog', 'a cat']", "line 1", "code of a program", "a line"),
        ("p.md", "# title\na dog\n```\nx\n```", "line 3", "Markdown", "one prompt a line"),
        ("p.txt", "[a]\nprompt=a dog", "line 2", "a setting", "one prompt a line"),
        ("p.txt", "# only a comment\n\n", "p.txt", "no prompt", "one prompt a line"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_line_and_remedy(
    tmp_path: Path, name: str, text: str, place: str, words: str, remedy: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_prompts(write(tmp_path, name, text))
    assert words in caught.value.message
    assert str(caught.value.where).endswith(place)
    assert remedy in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\x00", "a PNG image"),
        (b"PK\x03\x04\x14\x00", "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"{\\rtf1\\ansi a dog}", "Rich Text"),
        (b"a\x00dog", "control character"),
    ],
)
def test_a_binary_is_refused_by_its_kind(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(DataError, match=kind):
        load_prompts(tmp_path / "p.txt")


def test_the_trigger_is_filled_in_where_exactly_one_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "a [trigger] dog\na photo of {trigger}")
    prompts = load_prompts(path, [Subject("sks", "dog")])
    assert [(p.prompt, p.score_text) for p in prompts] == [
        ("a sks dog", "a dog"),
        ("a photo of sks", "a photo of dog"),
    ]
    with pytest.raises(DataError, match="several are known: sks, ohwx"):
        load_prompts(path, [Subject("sks", "dog"), Subject("ohwx", "cat")])


@pytest.mark.parametrize(
    "text", ["a cat BREAK a dog", "a cat AND a dog", "1girl, (smile), solo", "a {red, blue} cat"]
)
def test_what_may_be_meant_literally_is_read_with_a_warning(tmp_path: Path, text: str) -> None:
    lines: list[str] = []
    path = write(tmp_path, "p.jsonl", json.dumps({"prompt": text}))
    assert [p.prompt for p in load_prompts(path, log=lines.append)] == [text]
    (line,) = lines
    assert line.startswith(f"{path}, line 1: ")
    assert "is read as plain words" in line


def test_a_warning_is_logged_where_no_function_receives_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_prompts(write(tmp_path, "p.txt", "# one\na dog"))
    assert "comments" in caplog.text
