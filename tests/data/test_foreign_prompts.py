"""Prompt files of other tools: what has an equal here is read, the rest is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorakit.core.errors import DataError
from lorakit.data.prompts import DEFAULT_SEEDS, Prompt, Subject, load_prompts


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def summary(prompts: list[Prompt]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(prompt.prompt, prompt.negative, prompt.seeds) for prompt in prompts]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "a dog --n bad, worse --d 3", ("a dog", "bad, worse", (3,))),
        ("p.txt", "a dog, on grass, --d 7", ("a dog, on grass", "", (7,))),
        ("p.txt", '--prompt "a dog" --negative_prompt "blurry" --seed 5', ("a dog", "blurry", (5,))),
        ("p.txt", "a dog --no people", ("a dog", "people", DEFAULT_SEEDS)),
        ("p.jsonl", '{"prompt": "a dog --n blurry", "seeds": [1, 2]}', ("a dog", "blurry", (1, 2))),
        ("p.yaml", "- a dog --d 4\n", ("a dog", "", (4,))),
        ("p.json", '["a dog --d 4"]', ("a dog", "", (4,))),
        (
            "p.json",
            '[{"prompt": "a dog", "negative_prompt": "x", "seed": 1, "enum": 0}]',
            ("a dog", "x", (1,)),
        ),
        ("p.toml", '[prompt]\nseed = 9\n[[prompt.subset]]\nprompt = "a dog"\n', ("a dog", "", (9,))),
        ("p.txt", r"saber \(fate\), smile", ("saber (fate), smile", "", DEFAULT_SEEDS)),
        (
            "p.txt",
            "a man (left) at 10:30 -- a clock",
            ("a man (left) at 10:30 -- a clock", "", DEFAULT_SEEDS),
        ),
    ],
)
def test_what_has_an_equal_is_read(
    tmp_path: Path, name: str, text: str, expected: tuple[str, str, tuple[int, ...]]
) -> None:
    assert summary(load_prompts(write(tmp_path, name, text))) == [expected]


def test_comments_of_a_text_file_are_skipped_and_counted(tmp_path: Path) -> None:
    lines: list[str] = []
    path = write(tmp_path, "p.txt", "# prompt 1\na dog\n\n  # prompt 2\na cat #2\n")
    assert [p.prompt for p in load_prompts(path, log=lines.append)] == ["a dog", "a cat #2"]
    assert lines == [f"{path}: 2 lines that start with # are comments, from line 1"]


@pytest.mark.parametrize(
    ("name", "text", "place", "words", "remedy"),
    [
        ("p.txt", "a dog\na cat --w 512 --h 512", "line 2", "--w 512, --h 512", "resolution"),
        ("p.txt", "a dog --l 7.5", "line 1", "guidance", "samples.guidance_scale"),
        ("p.txt", "# c\n\na dog --s 28", "line 3", "number of steps", "samples.num_inference_steps"),
        ("p.txt", "a dog --am 0.8", "line 1", "strength of an adapter", "--adapter FILE:STRENGTH"),
        ("p.txt", "a dog --cn pose.png", "line 1", "it is an image", "`image`"),
        ("p.txt", "a dog --d 1 --xyz 2", "line 1", "--xyz 2", "remove it"),
        ("p.txt", "a dog --d one", "line 1", "a seed is a whole number", "--d 1"),
        ("p.txt", "a dog --ar 3:2 --v 6", "line 1", "--ar 3:2", "remove it"),
        ("p.txt", "a <lora:style:0.8> dog", "line 1", "tag of a network", "remove it"),
        ("p.txt", "a (red:1.3) dog", "line 1", "attention syntax", "write the word alone"),
        ("p.txt", "a {red|blue} dog", "line 1", "wildcard", "write one of its words"),
        ("p.txt", "a dog\n__animal__", "line 2", "wildcard", "write one of its words"),
        ("p.txt", "embedding:nice dog", "line 1", "embedding", "write the words"),
        ("p.txt", "a [trigger] dog", "line 1", "none is known", "write the trigger word"),
        ("p.txt", "a photo of {}", "line 1", "placeholder", "write the words"),
        ("p.jsonl", '{"prompt": "a", "negative": "(bad:1.4)"}', "line 1", "attention syntax", "alone"),
        ("p.jsonl", '{"prompt": "a --n b", "negative": "c"}', "line 1", "negative is given twice", "one of"),
        ("p.yaml", "- a dog\n- a cat --w 64\n", "line 2", "--w 64", "resolution"),
        ("p.tsv", "Prompt\tCategory\na <lora:x:1>\tb\n", "line 2", "tag of a network", "remove it"),
        ("p.json", '[{"prompt": "a", "sample_steps": 20}]', "entry 1", "sample_steps = 20", "num_inference"),
        ("p.json", '["a", 5]', "entry 2", "a text or an object", ""),
        ("p.json", '{"a": 1}', "p.json", "not a JSON list", ""),
        ("p.json", '[{"prompt": "a", "foo": 1}]', "entry 1", "unknown key 'foo'", "known keys"),
        (
            "p.toml",
            '[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a"\n',
            "entry 1",
            "width = 64",
            "resolution",
        ),
        ("p.toml", 'prompts = ["a"]\n', "p.toml", "not a list of prompts", "[[prompt.subset]]"),
        ("p.toml", "[prompt\n", "p.toml", "not valid TOML", ""),
    ],
)
def test_what_has_no_equal_is_refused_with_line_and_remedy(
    tmp_path: Path, name: str, text: str, place: str, words: str, remedy: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_prompts(write(tmp_path, name, text))
    assert words in caught.value.message
    assert str(caught.value.where).endswith(place)
    assert remedy in (caught.value.remedy or "")


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
