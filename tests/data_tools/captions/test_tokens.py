"""Tokens as the encoders of a base count them, and the words that they do not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.captions import tokens
from data_tools.prepare import PrepareOptions, check_dataset_folder, prepare_dataset, rebuild_dataset_report
from lorakit.core.errors import ConfigError
from tests.data_tools.folders import fill
from tests.tiny import tiny_folder

LONG = " ".join(f"word{number}" for number in range(300))


def base(name: str) -> str:
    return str(tiny_folder(name))


def test_every_tokenizer_of_a_base_has_its_limit() -> None:
    found = {reader.name: reader.max_tokens for reader in tokens.load_tokenizers(base("sd3"))}
    assert found == {"tokenizer": 75, "tokenizer_2": 75, "tokenizer_3": 255}
    assert [reader.max_tokens for reader in tokens.load_tokenizers("tiny-dit")] == [30, 30]


@pytest.mark.parametrize("name", ["sd15", "sd3", "qwen-image", "lumina2"])
def test_the_truncated_text_is_what_the_encoder_does_not_read(name: str) -> None:
    """Compared with the tokenizer's own truncation: its ids spell exactly the kept words."""
    for reader in tokens.load_tokenizers(base(name)):
        count = reader.count(LONG * 3)
        marks = reader.tokenizer.num_special_tokens_to_add()
        assert count.truncated_text
        assert count.num_tokens > count.max_tokens
        kept = (LONG * 3)[: -len(count.truncated_text)].strip()
        assert f"{kept} {count.truncated_text}" == LONG * 3
        cut = reader.tokenizer(LONG * 3, truncation=True, max_length=count.max_tokens + marks)["input_ids"]
        whole = reader.tokenizer(kept)["input_ids"]
        inner = whole[: len(whole) - marks] if marks else whole
        assert cut[: len(inner)] == inner
        more = f"{kept} {count.truncated_text.split()[0]}"
        assert len(reader.tokenizer(more, add_special_tokens=False)["input_ids"]) > count.max_tokens
        assert len(reader.tokenizer(kept, add_special_tokens=False)["input_ids"]) <= count.max_tokens


def test_a_caption_that_fits_is_not_truncated() -> None:
    (reader,) = tokens.load_tokenizers(base("sd15"))
    exact = "a" * reader.max_tokens  # the tiny tokenizer has a token a letter
    assert (reader.count(exact).num_tokens, reader.count(exact).truncated_text) == (75, "")
    assert reader.count(f"{exact} b").truncated_text == "b"
    assert reader.count("").truncated_text == ""


def test_truncated_words_of_a_long_caption_are_reported(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": LONG, "b.png": "short"}, size=(64, 64))
    result = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True, base=base("sd15")))
    assert result.records[0].caption == LONG
    (note,) = [note for note in result.records[0].notes if note.startswith("caption_truncated")]
    (count,) = [reader.count(LONG) for reader in tokens.load_tokenizers(base("sd15"))]
    assert (
        note
        == f"caption_truncated: tokenizer reads 75 of {count.num_tokens} tokens, not: {count.truncated_text}"
    )
    assert count.truncated_text.endswith("word298 word299")
    (finding,) = [finding for finding in result.findings if finding.code == "caption_truncated"]
    assert (finding.level, finding.files) == ("warning", ("a.png",))
    value = json.loads((folder / "report.json").read_text())
    assert value["images"][0]["captions"][0]["tokens"][0]["truncated_text"] == count.truncated_text
    assert "caption_truncated" not in {
        f.code for f in prepare_dataset(folder, PrepareOptions(resolution=64)).findings
    }


def test_truncation_by_one_of_several_encoders_is_a_note(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "a" * 100}, size=(64, 64))
    found = {f.code: f.level for f in check_dataset_folder(folder, PrepareOptions(base=base("sd3"))).findings}
    assert found["caption_truncated_partly"] == "note"
    assert "caption_truncated" not in found
    assert "long_caption" not in found  # the rule of thumb is silent where tokens were counted


def test_without_a_base_the_number_of_tokens_is_estimated(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": LONG}, size=(64, 64))
    assert "long_caption" in {f.code for f in check_dataset_folder(folder, PrepareOptions()).findings}


def test_the_rebuilt_report_counts_tokens(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "a photo of sks"}, size=(64, 64))
    prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True, report=False))
    rebuild_dataset_report(folder, trigger="sks", base="tiny-dit", quiet=True)
    (count, _) = json.loads((folder / "report.json").read_text())["images"][0]["captions"][0]["tokens"]
    assert (count["max_tokens"], count["truncated_text"]) == (30, "")
    assert count["num_tokens"] == 4


def test_an_unknown_base_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": "x"}, size=(64, 64))
    with pytest.raises(ConfigError, match="no such base"):
        prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True, base="tiny-dot"))
