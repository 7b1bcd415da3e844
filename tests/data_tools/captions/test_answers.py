"""Answers of a model: nothing that controls a terminal, no key and no megabytes are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.captioners import CaptionerOptions
from data_tools.captions.text import clean_answer
from data_tools.dataset import Dataset
from data_tools.prepare import PrepareOptions, caption_dataset
from lorakit.models import chat_client
from tests.data_tools.caption_server import Reply, completion, serving_captions
from tests.data_tools.folders import fill

KEY = "sk-Ab/12345+67890=canary"


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "RETRY_DELAYS", (0.01,))
    monkeypatch.setenv("LORAKIT_CAPTION_API_KEY", KEY)


def run(folder: Path, reply: Reply, *, models: list[str] | None = None) -> Dataset:
    fill(folder, {"a.png": None, "b.png": None}, size=(64, 64))
    with serving_captions(reply) as server:
        server.models = models or server.models
        captioner = CaptionerOptions(server=server.url, timeout=5.0)
        return caption_dataset(folder, PrepareOptions(resolution=64, quiet=True, captioner=captioner))


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("a \x1b[31mred\x1b[0m dog", "a red dog"),
        ("a dog\x1b]0;title\x07 on grass", "a dog on grass"),
        ("a\x00 dog\x07 \x9b2Jhere", "a dog here"),
        ("a dog \u202egpj.exe", "a dog gpj.exe"),
        ("\ufeffa dog\u200b", "a dog"),
        ("a \\(red\\) dog", "a (red) dog"),
        ("a family 👩\u200d👩\u200d👧, ক্\u200dষ", "a family 👩\u200d👩\u200d👧, ক্\u200dষ"),
        ("a dog\r\n  on grass\t.", "a dog on grass ."),
    ],
)
def test_an_answer_is_one_line_of_plain_text(answer: str, caption: str) -> None:
    line, notes = clean_answer(answer)
    assert line == caption
    assert bool(notes) == any(not c.isprintable() and c not in "\r\n\t\u200d" for c in answer)


def test_a_cleaned_answer_is_noted_in_the_manifest(tmp_path: Path) -> None:
    result = run(tmp_path, lambda request: "a \x1b[31mred\x1b[0m dog")
    assert {record.caption for record in result.records} == {"a red dog"}
    (found,) = [f for f in result.findings if f.code == "answer_cleaned"]
    assert (found.level, found.files) == ("note", ("a.png", "b.png"))
    assert b"\\u001b" not in (tmp_path / "manifest.jsonl").read_bytes()


@pytest.mark.parametrize(
    "answer",
    [
        "a dog " * 500_000,  # 3 MB
        ("a dog. " * 100_000, "length"),
        "x" * 20_001,
        [{"type": "text", "text": "a dog " * 200_000}],
    ],
    ids=["3 MB", "truncated", "just too long", "in parts"],
)
def test_a_too_long_answer_is_a_finding_and_is_not_stored(tmp_path: Path, answer: Any) -> None:
    body = completion(*answer) if isinstance(answer, tuple) else completion(answer)
    result = run(tmp_path, lambda request: body)
    assert not any(record.captions for record in result.records)
    (found,) = [f for f in result.findings if f.code == "caption_failed"]
    assert found.files == ("a.png", "b.png")
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) < 10_000


def _error(text: str) -> bytes:
    return json.dumps({"error": {"message": text}}).encode()


@pytest.mark.parametrize(
    "reply",
    [
        (401, {}, _error(f"wrong key {KEY}")),
        (401, {}, _error(f"wrong key {KEY}").replace(b"sk-", b"\\u0073k-").replace(b"/", b"\\/")),
        (400, {}, _error(f"Authorization: Bearer {KEY} is not known")),
        (400, {}, _error(" " * 9 + "x" * 180 + f" {KEY}")),  # cut in the middle of the key
        (500, {}, json.dumps({"error": f"https://me:{KEY}@proxy refused"}).encode()),
        json.dumps({"choices": [{"message": {"content": "", "refusal": f"no: {KEY}"}}]}).encode(),
        f"a dog with {KEY} on its collar",
    ],
    ids=["plain", "escaped", "header", "cut", "address", "refusal", "answer"],
)
def test_the_key_is_in_nothing_that_is_stored_or_printed(
    tmp_path: Path, reply: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path, lambda request: reply)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    printed = "".join(capfd.readouterr()) + result.summary() + "".join(map(str, result.findings))
    for part in ("canary", "12345", KEY[:12]):
        assert part.encode() not in stored
        assert part not in printed


def test_the_name_of_a_model_is_short_and_has_no_control_characters(tmp_path: Path) -> None:
    result = run(tmp_path, lambda request: "a dog", models=["m\x1b[2J" + KEY + "x" * 100_000])
    name = result.records[0].captions[0].model or ""
    assert len(name) <= 200
    assert name.isprintable()
    assert "canary" not in name
