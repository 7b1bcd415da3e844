from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json

REFUSED = {
    "doubled key": ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "doubled key inside": ('{"b": [{"a": 1, "c": 0, "a": 1}]}', "the key 'a' occurs twice"),
    "escaped doubled key": ('{"a": 1, "\\u0061": 2}', "the key 'a' occurs twice"),
    "deep lists": ("[" * 65 + "]" * 65, "more than 64 lists and objects"),
    "deeper than the recursion": ("[" * 100_000, "more than 64 lists and objects"),
    "deep objects": ('{"a":' * 3000 + "1" + "}" * 3000, "more than 64 lists and objects"),
    "long integer": ("9" * 5000, "the integer 999999999999999999999999... has more than 64 bits"),
    "large integer": ("18446744073709551616", "has more than 64 bits"),
    "large negative": ("-9223372036854775809", "has more than 64 bits"),
    "large float": ("1e999", "the number 1e999 is too large"),
    "long float": ("0." + "1" * 5000, "is too large or too long"),
    "nan": ("NaN", "NaN is not a number in JSON"),
    "infinity": ('{"a": -Infinity}', "-Infinity is not a number"),
    "half a character": ('"\\ud800"', r"\\ud800 is half a character"),
    "half a key": ('{"\\uDFFF": 1}', r"\\udfff is half a character"),
    "not UTF-8": (b'{"a": "\xff"}', r"byte 7 \(0xff\) is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), r"byte 0 \(0xff\) is not UTF-8"),
    "cut off": ('{"a": 1,\n"b"', "expecting ':' delimiter at line 2, column 4"),
    "empty": (" \n", "the text is empty"),
    "text after the value": ("{} {}", "extra data at column 4"),
    "control character": ('"a\x1b"', "invalid control character at column 3"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_text_that_is_not_plain_json_is_refused_with_its_place(text, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_json(text, "photos/a.json", remedy="repair it")
    assert (caught.value.where, caught.value.remedy) == ("photos/a.json", "repair it")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ("\ufeff[]", []),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("[" * 64 + "]" * 64, json.loads("[" * 64 + "]" * 64)),
        ("18446744073709551615", 2**64 - 1),
        ("-0.5e-3", -0.0005),
        ('{"a": {"a": 1}, "b": {"a": 1}}', {"a": {"a": 1}, "b": {"a": 1}}),
    ],
)
def test_plain_json_keeps_its_values(text, value):
    assert parse_json(text, "x") == value


@pytest.mark.parametrize(
    "text",
    ["[" + "{}," * 3_000_000 + "0]", "[" + "1," * 9_000_000 + "1]", '"' + "a" * (65 << 20) + '"'],
    ids=["objects", "numbers", "bytes"],
)
def test_a_text_that_would_fill_the_memory_is_refused_at_once(text):
    started = time.process_time()
    with pytest.raises(DataError, match=r"at most 64 are read|more than 8 million values"):
        parse_json(text, "x")
    assert time.process_time() - started < 2


def test_infinity_is_accepted_in_configurations_of_other_libraries():
    assert parse_json('{"sigma": -Infinity}', "x", allow_infinity=True) == {"sigma": float("-inf")}


@pytest.mark.parametrize("line", ['{"a": 1, "a": 2}', '{"a": "\\ud800"}', "[" * 5000])
def test_json_lines_are_as_strict_and_name_the_line(tmp_path: Path, line):
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 0}\n' + line + "\n")
    with pytest.raises(DataError, match="not valid JSON") as caught:
        storage.read_jsonl(file)
    assert caught.value.where == f"{file}, line 2"


@pytest.mark.parametrize("key", ["width", "captions", "file"])
def test_a_key_that_occurs_twice_in_a_manifest_line_is_refused(tmp_path: Path, key):
    line = manifest.manifest_bytes([manifest.Record("a.png", "0" * 64, "0" * 64, 8, 8)])
    value = json.dumps(json.loads(line)[key])
    (tmp_path / "manifest.jsonl").write_bytes(line.rstrip()[:-1] + f', "{key}": {value}}}\n'.encode())
    with pytest.raises(DataError, match=f"the key '{key}' occurs twice") as caught:
        manifest.load_manifest(tmp_path)
    assert str(caught.value.where).endswith("manifest.jsonl, line 1")


def test_only_strict_json_parses_json():
    root = Path(storage.__file__).parents[2]
    # the header that the safetensors library just wrote; the others: messages of lorakit's processes
    allowed = {"strict_json.py", "safetensors_header.py", "worker.py", "process_reports.py"}
    for folder in ("lorakit", "data_tools"):
        for file in (root / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert file.name in allowed or "json.load" not in text, file
