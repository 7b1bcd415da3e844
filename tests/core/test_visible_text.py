from __future__ import annotations

import json

import pytest

from lorakit import reports
from lorakit.core import command_line, progress, tables
from lorakit.core.errors import DataError
from lorakit.core.visible_text import escape_controls, escape_json_controls, escape_name

HOSTILE = {
    "clear screen": ("\x1b[2J", "\\x1b[2J"),
    "title": ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
    "one-byte escape": ("\x9b31m", "\\x9b31m"),
    "right-to-left override": ("gpj\u202eexe", "gpj\\u202eexe"),
    "isolate": ("\u2066a\u2069", "\\u2066a\\u2069"),
    "mark": ("a\u200fb\u061c", "a\\u200fb\\u061c"),
    "carriage return": ("good\rbad", "good\\rbad"),
    "backspaces": ("a\b\b\x7f", "a\\x08\\x08\\x7f"),
    "half a character": ("a\udcff", "a\\udcff"),
}


@pytest.mark.parametrize(("text", "visible"), HOSTILE.values(), ids=HOSTILE)
def test_characters_that_control_a_terminal_are_printed_as_escapes(capsys, text, visible):
    command_line.print_error(DataError(f"bad {text}", where=text, remedy=text))
    progress.print_line(text)
    with progress.Progress(text, 2) as bar:
        bar.printed_at -= 60
        bar.update(1, text)
    assert capsys.readouterr().err.count(visible) == 6
    tables.print_table(["a"], [[text]])
    assert visible in capsys.readouterr().out
    assert visible in reports.render_block("paragraphs", [text])
    assert visible in reports.render_block("badge", reports.Badge("x", tooltip=text))


@pytest.mark.parametrize(("text", "visible"), HOSTILE.values(), ids=HOSTILE)
def test_json_answers_keep_their_value(text, visible):
    printed = escape_json_controls(json.dumps([text], ensure_ascii=False))
    assert json.loads(printed) == [text]
    assert not any(letter in printed for letter in text if not letter.isprintable())


@pytest.mark.parametrize("text", ["plain", "日本 ёж", "\U0001f469\u200d\U0001f680", "a\tb\nc", "שלום", "\\x"])
def test_other_text_stays_as_it_is(text):
    assert escape_controls(text) == text
    assert f">{text}<" in reports.Badge(text).__html__()


def test_a_name_is_one_line():
    assert escape_name("a\n  remedy: rm -rf ~\tb") == "a\\n  remedy: rm -rf ~\\tb"
    assert "\n  remedy: x" not in str(DataError("bad", where="a\n  remedy: x"))


def test_a_whole_command_escapes_names(tmp_path, capsys):
    from lorakit.cli import main

    name = "a\x1b[2J\u202e.safetensors"
    (tmp_path / name).write_bytes(b"x")
    assert main.main(["inspect", str(tmp_path / name)]) == 3
    error = capsys.readouterr().err
    assert "a\\x1b[2J\\u202e.safetensors" in error
    assert "\x1b[2J" not in error
