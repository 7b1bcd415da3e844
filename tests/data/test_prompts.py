"""Prompt files in every format, and the errors for files that cannot be used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.core.errors import DataError
from lorakit.data.prompts import DEFAULT_SEEDS, Prompt, load_prompts, prompt_to_row
from lorakit.data.subjects import Subject, replace_triggers


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl_with_every_key(tmp_path: Path) -> None:
    row = {
        "id": "beach.1",
        "prompt": "a sks dog on a beach",
        "score_text": "a dog on a beach",
        "negative": "blurry",
        "seeds": [7, 3],
        "kind": "unrelated",
    }
    path = write(tmp_path, "p.jsonl", json.dumps(row) + "\n\n" + json.dumps({"prompt": " a cat "}) + "\n")
    assert load_prompts(path) == [
        Prompt("beach.1", "a sks dog on a beach", "a dog on a beach", "blurry", (7, 3), "unrelated"),
        Prompt("0002", "a cat", "a cat", "", DEFAULT_SEEDS, "subject"),
    ]


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_yaml_lists_may_hold_strings_and_mappings(tmp_path: Path, suffix: str) -> None:
    text = (
        "# comment\n- a red dog\n- {id: cat, prompt: a cat, seeds: [5]}\n- prompt: >\n    a long\n    one\n"
    )
    prompts = load_prompts(write(tmp_path, f"p{suffix}", text))
    assert [(p.id, p.prompt, p.seeds) for p in prompts] == [
        ("0001", "a red dog", DEFAULT_SEEDS),
        ("cat", "a cat", (5,)),
        ("0003", "a long one", DEFAULT_SEEDS),
    ]


def test_partiprompts_table_keeps_its_quotes_and_categories(tmp_path: Path) -> None:
    text = 'Prompt\tCategory\tChallenge\tNote\n"Peace" on a wall\tArts\tBasic\t\n'
    text += 'an "odd one\tAnimals\tComplex\tx\n'
    prompts = load_prompts(write(tmp_path, "parti.tsv", text))
    assert [(p.prompt, p.kind) for p in prompts] == [
        ('"Peace" on a wall', "Arts"),
        ('an "odd one', "Animals"),
    ]


LIST = """Object Prompts

prompt_list = [
'a {0} {1} on a shelf'.format(unique_token, class_token),
'a shiny {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} with a hat'.format(unique_token, class_token)
]
"""


@pytest.mark.parametrize(
    ("subject", "texts"),
    [
        (
            Subject("sks", "teapot"),
            [("a sks teapot on a shelf", "a teapot on a shelf"), ("a shiny sks teapot", "a shiny teapot")],
        ),
        (Subject("sks", "old dog"), [("a sks old dog with a hat", "a old dog with a hat")]),
        (Subject(None, "dog"), [("a dog with a hat", "a dog with a hat")]),
    ],
)
def test_the_subject_is_filled_into_dreambooths_list(tmp_path: Path, subject: Subject, texts: list) -> None:
    found = load_prompts(write(tmp_path, "prompts_and_classes.txt", LIST), [subject])
    assert [(p.prompt, p.score_text) for p in found] == texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a sks dog and an ohwx cat", "a dog and an cat"),
        ("a photo of SKS beside Ohwx", "a photo of dog beside cat"),
        ("zwx in snow", "zwx in snow"),  # it has no class noun
        ("a b c", "sks c"),  # what a class noun brings in is not replaced again
        ("sksy, ohwxs", "sksy, ohwxs"),
    ],
)
def test_all_triggers_are_replaced_by_their_class_nouns_at_once(text: str, expected: str) -> None:
    subjects = [Subject("sks", "dog"), Subject("ohwx", "cat"), Subject("zwx"), Subject("a b", "sks")]
    assert replace_triggers(text, subjects) == expected


def test_a_list_with_placeholders_is_filled_for_each_subject(tmp_path: Path) -> None:
    subjects = [Subject("sks", "teapot"), Subject("ohwx", "teapot"), Subject(None, "vase")]
    one, all_of_them = (load_prompts(write(tmp_path, "p.txt", LIST), s) for s in (subjects[:1], subjects))
    assert len(all_of_them) == 3 * len(one)
    assert [p.role(["sks", "ohwx"]) for p in all_of_them] == ["subject"] * 6
    assert len({p.id for p in all_of_them}) == 6


def test_dreambooths_list_without_a_subject_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="placeholders for a subject") as caught:
        load_prompts(write(tmp_path, "p.txt", LIST))
    assert "--class-noun" in str(caught.value)


def test_the_class_noun_replaces_the_trigger_where_a_row_has_no_score_text(tmp_path: Path) -> None:
    rows = ["a sks dog in snow", "SKS on a sofa", "a sksy dog"]
    texts = [
        p.score_text for p in load_prompts(write(tmp_path, "p.txt", "\n".join(rows)), [Subject("sks", "dog")])
    ]
    assert texts == ["a dog in snow", "dog on a sofa", "a sksy dog"]
    row = json.dumps({"prompt": "a sks dog", "score_text": "a puppy"})
    assert load_prompts(write(tmp_path, "p.jsonl", row), [Subject("sks", "dog")])[0].score_text == "a puppy"


def test_the_role_of_a_prompt_depends_on_its_kind_and_on_the_trigger() -> None:
    kinds = {
        "subject": "subject",
        "recontextualization": "subject",
        "view": "subject",
        "class": "class",
        "unrelated": "unrelated",
    }
    for kind, role in kinds.items():
        assert Prompt("a", "a dog", "a dog", kind=kind).role(["sks"]) == role
    for text, role in (("a sks dog", "subject"), ("a boat", "unrelated"), ("sksy", "unrelated")):
        assert Prompt("a", text, text, kind="Animals").role(["sks"]) == role
    assert Prompt("a", "a boat", "a boat", kind="Animals").role([]) == "subject"


def test_image_paths_are_relative_to_the_prompt_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/pose.png").write_bytes(b"any")
    path = write(tmp_path, "p.jsonl", json.dumps({"prompt": "a dog", "image": "sub/pose.png"}))
    assert load_prompts(path)[0].images == (tmp_path / "sub/pose.png",)
    path = write(tmp_path, "q.jsonl", json.dumps({"prompt": "a dog", "image": "gone.png"}))
    with pytest.raises(DataError, match=r"no image 'gone\.png'"):
        load_prompts(path)


def test_several_images_and_a_mask(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "m.png"):
        (tmp_path / name).write_bytes(b"any")
    row = {"prompt": "join them", "image": ["a.png", "b.png"], "mask": "m.png"}
    (prompt,) = load_prompts(write(tmp_path, "p.jsonl", json.dumps(row)))
    assert prompt.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert prompt.mask == tmp_path / "m.png"
    assert load_prompts(write(tmp_path, "q.jsonl", json.dumps(prompt_to_row(prompt)))) == [prompt]
    for wrong, message in (
        ({"image": [1]}, "list of paths"),
        ({"mask": "no.png"}, "no image"),
        ({"image": 3}, "string"),
    ):
        with pytest.raises(DataError, match=message):
            load_prompts(write(tmp_path, "r.jsonl", json.dumps({"prompt": "x"} | wrong)))


def test_a_prompt_is_read_back_from_its_row(tmp_path: Path) -> None:
    prompts = [Prompt("a", "a sks dog", "a dog", "blurry", (1, 2), "view"), Prompt("b", "x", "x")]
    path = write(tmp_path, "p.jsonl", "\n".join(json.dumps(prompt_to_row(p)) for p in prompts))
    assert load_prompts(path) == prompts


def test_plain_text_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa dog\r\n\r\nein Haus, größer: ja\r\n".encode())
    assert [p.prompt for p in load_prompts(path)] == ["a dog", "ein Haus, größer: ja"]


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', 2, "unknown key 'promt'"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": " "}\n', 3, "empty"),
        ("p.jsonl", '{"id": "x"}\n', 1, "empty"),
        ("p.jsonl", '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "X"}\n', 2, "used in line 1"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "id": "0001"}\n', 2, "used in line 1"),
        ("p.jsonl", '{"prompt": "a"\n', 1, "not valid JSON"),
        ("p.jsonl", '{"prompt": "a"}\n["a"]\n', 2, "one JSON object"),
        ("p.jsonl", '{"prompt": 5}\n', 1, "must be a string"),
        ("p.jsonl", '{"prompt": "a", "negative": ["b"]}\n', 1, "negative must be a string"),
        ("p.yaml", "- a\n- prompt: b\n  sedes: [1]\n", 2, "unknown key 'sedes'"),
        ("p.yaml", "- a\n- 5\n", 2, "a string or a mapping"),
        ("p.yaml", "- ''\n", 1, "empty"),
        ("p.tsv", "Words\tCategory\na\tb\n", 1, "no column named Prompt"),
        ("p.tsv", "Prompt\tCategory\na\tb\nc\n", 3, "1 cells under 2 column names"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, text: str, line: int, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(path)
    assert caught.value.where == f"{path}, line {line}"


@pytest.mark.parametrize("seeds", ["[]", '"4x"', "[1, 1]", "[-1]", "[1.5]", "[true]", "-2", f"[{2**63}]"])
def test_seeds_must_be_different_non_negative_integers(tmp_path: Path, seeds: str) -> None:
    path = write(tmp_path, "p.jsonl", f'{{"prompt": "a", "seeds": {seeds}}}\n')
    with pytest.raises(DataError, match="seeds") as caught:
        load_prompts(path)
    assert "line 1" in str(caught.value)
    assert "[0, 1, 2, 3]" in str(caught.value)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "x" * 101, "c:\\d", True, 1.5, ["a"]])
def test_ids_that_cannot_name_a_file_are_refused(tmp_path: Path, name: object) -> None:
    path = write(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "id": name}) + "\n")
    with pytest.raises(DataError, match="cannot be used"):
        load_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "no prompt"),
        ("p.jsonl", b"", "no prompt"),
        ("p.yaml", b"", "no prompt"),
        ("p.yaml", b"a: 1\n", "not a YAML list"),
        ("p.yaml", b"- [\n", "not valid YAML"),
        ("p.yaml", b"- !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("p.txt", b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_readable_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_prompts(tmp_path / "none.jsonl")


def test_loads_without_torch() -> None:
    code = "import sys, lorakit.data.prompts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
