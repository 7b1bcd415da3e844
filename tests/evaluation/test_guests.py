"""Adapters of another origin in an evaluation: their names, their trigger words and their prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.guests import GuestRequest, find_guests


def write(file: Path, own: dict | None = None, **metadata: str) -> Path:
    values = {"type": "lora", "rank": 1, "alpha": 1, "family": "sd15"} | (own or {})
    packed = adapters.pack_metadata(values) if own is not None else {}
    return storage.write_safetensors(file, {"x.lora_A.weight": torch.ones(1, 2)}, packed | metadata)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("a photo of sks dog", "a photo of ohwx dog"),
        ("Sks, in snow", "ohwx, in snow"),
        ("skskate and sks.", "skskate and ohwx."),
        ("a boat", "a boat"),
    ],
)
def test_the_trigger_word_of_the_run_is_replaced_and_the_noise_stays(tmp_path, text, own):
    file = write(tmp_path / "theirs.safetensors")
    (guest,), notes = find_guests([GuestRequest(str(file), "ohwx")], ("sks",))
    prompt = Prompt("p1", text, "a dog", seeds=(3, 4))
    assert guest.own_prompt(prompt) == Prompt("p1", own, "a dog", seeds=(3, 4))
    assert notes == []


@pytest.mark.parametrize(
    ("own", "metadata"),
    [({"trigger": "ohwx"}, {}), (None, {"modelspec.trigger_phrase": "ohwx"}), ({}, {})],
)
def test_the_trigger_word_that_a_file_records_is_used_and_an_unknown_one_is_noted(tmp_path, own, metadata):
    file = write(tmp_path / "theirs.safetensors", own, **metadata)
    (guest,), notes = find_guests([GuestRequest(f"{file}:0.8")], ("sks",))
    known = bool(own or metadata)
    assert guest.trigger == ("ohwx" if known else None)
    assert guest.source.strength == 0.8
    assert len(notes) == (not known)
    assert guest.name == "theirs@0.8"
    if not known:
        assert "sampled with the trigger word of the run (sks)" in notes[0]


def test_one_of_several_trigger_words_is_named(tmp_path):
    file = write(tmp_path / "theirs.safetensors", {"trigger": "ohwx"})
    (guest,), _ = find_guests([GuestRequest(str(file), "zwx=ohwx")], ("sks", "zwx"))
    assert guest.own_prompt(Prompt("p", "sks and zwx", "x")).prompt == "sks and ohwx"
    (unknown,), notes = find_guests([GuestRequest(str(file))], ("sks", "zwx"))
    assert unknown.trigger is None
    assert len(notes) == 1
    assert find_guests([GuestRequest(str(file))], ())[1] == []  # there is nothing to replace


@pytest.mark.parametrize(
    ("trigger", "run_triggers", "message"),
    [
        ("ohwx", (), "has no trigger word to replace"),
        ("ohwx", ("sks", "zwx"), "several trigger words: sks, zwx"),
        ("abc=ohwx", ("sks", "zwx"), "no trigger word 'abc'"),
        (" ", ("sks",), "the trigger word is empty"),
        ("sks=", ("sks",), "the trigger word is empty"),
    ],
)
def test_a_trigger_word_that_replaces_nothing_is_an_error(tmp_path, trigger, run_triggers, message):
    file = write(tmp_path / "theirs.safetensors")
    with pytest.raises(ConfigError, match=message):
        find_guests([GuestRequest(str(file), trigger)], run_triggers)


def test_guests_have_different_names_and_folders(tmp_path):
    files = [write(tmp_path / folder / "step-200.safetensors") for folder in ("a", "b")]
    guests, _ = find_guests([GuestRequest(str(file)) for file in files], (), ["base", "step-200"])
    assert [guest.name for guest in guests] == ["step-200-2", "step-200-3"]
    assert len({guest.folder for guest in guests}) == 2
    with pytest.raises(ConfigError, match="there is no such adapter"):
        find_guests([GuestRequest(str(tmp_path / "nowhere"))], ())
