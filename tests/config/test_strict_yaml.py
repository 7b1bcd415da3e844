"""One strict loader for recipes and prompt files."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from lorakit.config import recipe
from lorakit.core.errors import ConfigError, DataError, LorakitError
from lorakit.data.prompts import load_prompts

BOMB = "&a [x, x, x]\n" + "".join(f"- &{n} [*{p}, *{p}, *{p}]\n" for p, n in pairwise("abcdefghi"))
REFUSED = {
    "aliases": (BOMB, r"aliases \(\*name\) are not accepted"),
    "tag of Python": ("!!python/object/apply:os.system ['touch x']\n", r"tags \(!name\) are not accepted"),
    "octal by tag": ("!!int '010'\n", r"tags \(!name\) are not accepted"),
    "binary by tag": ("!!binary aGVsbG8=\n", r"tags \(!name\) are not accepted"),
    "doubled key": ("{prompt: a dog, prompt: a cat}\n", "the key 'prompt' occurs twice"),
    "deep": ("[" * 5000 + "\n", "more than 32 lists and mappings are inside each other"),
    "deep dashes": ("- " * 5000 + "x\n", "more than 32 lists and mappings are inside each other"),
    "key that is a list": ("{[a]: b}\n", "is not text; put it in quotes"),
    "long integer": ("9" * 5000 + "\n", "has more than 64 bits"),
    "half a quotation": ("'x\n", "while scanning a quoted scalar"),
    "control character": ('"a\x07b"\n', "the control character"),
}


@pytest.mark.parametrize(("item", "message"), REFUSED.values(), ids=REFUSED)
def test_what_yaml_hides_is_refused_in_recipes_and_prompt_files(tmp_path: Path, item, message):
    started = time.process_time()
    for name, read in (("r.yaml", recipe.load_recipe), ("p.yaml", load_prompts)):
        (tmp_path / name).write_text(f"- {item}", encoding="utf-8")
        with pytest.raises((ConfigError, DataError), match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value.where)
    assert time.process_time() - started < 3
    assert not Path("x").exists()


@pytest.mark.parametrize("text", ["1:30", "010", "0x1f", "1_000", "2024-01-01", "1e", "+"])
def test_text_of_a_prompt_that_looks_like_a_number_or_date_stays_text(tmp_path: Path, text):
    (tmp_path / "p.yaml").write_text(f"- {text}\n- {{prompt: {text}, kind: {text}}}\n")
    first, second = load_prompts(tmp_path / "p.yaml")
    assert (first.prompt, second.prompt, second.kind) == (text, text, text)


@pytest.mark.parametrize("name", ["r.yaml", "p.yaml"])
def test_a_yaml_file_of_a_megabyte_is_refused_at_once(tmp_path: Path, name):
    (tmp_path / name).write_text("- a dog\n" * 130_000)
    started = time.process_time()
    with pytest.raises(LorakitError, match="larger than 256 KiB"):
        (recipe.load_recipe if name == "r.yaml" else load_prompts)(tmp_path / name)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", ["a" * 101, "é" * 60, "\U00010400" * 30])
def test_an_id_that_is_too_long_for_a_file_name_is_refused_when_the_prompts_are_read(tmp_path: Path, name):
    texts = {"jsonl": f'{{"id": "{name}", "prompt": "a dog"}}', "yaml": f"- {{id: {name}, prompt: x}}"}
    for form, text in texts.items():
        (tmp_path / f"p.{form}").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="at most 100 bytes"):
            load_prompts(tmp_path / f"p.{form}")


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("train.batch_size", 10**9, 1024),
        ("train.accumulate", 10**8, 10_000),
        ("train.steps", 10**9, 10_000_000),
        ("train.save_every", 2**40, 10_000_000),
        ("optimizer.warmup", 10**12, 10_000_000),
        ("adapter.rank", 10**6, 4096),
        ("adapter.factor", 10**9, 65_536),
        ("samples.num_inference_steps", 10**9, 1000),
        ("samples.every", 10**9, 10_000_000),
        ("validate.every", 10**9, 10_000_000),
        ("frames", 10**6, 1024),
        ("resolution", 10**6, 16_384),
    ],
)
def test_a_number_that_can_only_be_a_mistake_is_refused_with_its_limit(key, value, limit):
    section, _, name = key.rpartition(".")
    settings = {section: {name: value}} if section else {name: value}
    with pytest.raises(ConfigError) as caught:
        recipe.resolve_recipe({"base": "tiny-dit", "dataset": "d", "out": "o"}, **settings)
    assert key in str(caught.value)
    assert str(limit) in str(caught.value).replace(",", "").replace("_", "")


@pytest.mark.parametrize("pattern", ["re:" + "(" * 5000, "re:[", "re:a{99999999999}"])
def test_a_pattern_that_cannot_be_compiled_is_refused(pattern):
    with pytest.raises(ConfigError, match="not a valid regular expression"):
        recipe.resolve_recipe({"base": "x", "dataset": "d", "out": "o"}, adapter={"targets": [pattern]})
