from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lorakit.config.recipe import load_recipe
from lorakit.core import input_files, storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data.prompts import load_prompts

READERS = {
    "recipe": (load_recipe, "r.yaml"),
    "prompts as JSONL": (load_prompts, "p.jsonl"),
    "prompts as YAML": (load_prompts, "p.yaml"),
    "prompts as text": (load_prompts, "p.txt"),
    "JSON": (storage.read_json, "x.json"),
    "JSON lines": (storage.read_jsonl, "x.jsonl"),
    "safetensors": (storage.read_safetensors_metadata, "x.safetensors"),
    "text": (input_files.read_text, "x.txt"),
}


@pytest.fixture(params=READERS.values(), ids=READERS.keys())
def reader(request):
    return request.param


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, reader):
    read, name = reader
    os.mkfifo(tmp_path / name)
    with pytest.raises((ConfigError, DataError), match=r"a named pipe|no such recipe"):
        read(tmp_path / name)


def test_an_endless_device_is_refused(tmp_path: Path, reader):
    read, name = reader
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises((ConfigError, DataError), match=r"a device|no such recipe"):
        read(tmp_path / name)


def test_a_folder_is_refused(tmp_path: Path, reader):
    read, name = reader
    (tmp_path / name).mkdir()
    with pytest.raises((ConfigError, DataError), match=r"a folder|an empty folder"):
        read(tmp_path / name)


def test_a_socket_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # socket paths are limited to about 100 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(DataError, match="a socket, not a file"):
            input_files.read_text("s")


@pytest.mark.parametrize("name", ["p.jsonl", "p.yaml", "p.txt"])
def test_a_prompt_file_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path, name):
    with open(tmp_path / name, "wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(DataError, match="larger than 16 MiB"):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a dog\nd\xe9j\xe0 vu", r"byte 7 \(0xe9\) is not UTF-8"),
        ("a dog".encode("utf-16"), "the text is UTF-16, not UTF-8"),
        ("a dog".encode("utf-32-be"), "UTF-32|control character"),
        (b"a dog\na\x00cat", r"the control character \\x00 in line 2"),
        (b"a dog\na cat\n\x1b[2J", r"the control character \\x1b in line 3"),
        ("a\x85dog".encode(), r"the control character \\x85 in line 1"),
    ],
)
def test_text_that_cannot_be_read_is_named_with_its_place(tmp_path: Path, data, message):
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_all_ends_of_lines_are_read(tmp_path: Path, ends):
    (tmp_path / "p.txt").write_bytes(f"\ufeffa dog{ends}a\u2028cat{ends}".encode())
    assert [prompt.prompt for prompt in load_prompts(tmp_path / "p.txt")] == ["a dog", "a\u2028cat"]


def test_a_small_file_needs_little_memory_whatever_the_limit(tmp_path: Path):
    import tracemalloc

    (tmp_path / "x.json").write_text("{}")
    tracemalloc.start()
    input_files.read_regular(tmp_path / "x.json", 1 << 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_that_states_no_size_is_read_whole():
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    assert b"VmRSS" in input_files.read_bytes("/proc/self/status")


@pytest.mark.parametrize("command", [["train"], ["inspect"], ["data", "prepare"], ["data", "import", "out"]])
def test_a_path_that_is_too_long_is_one_error(capsys, command):
    from lorakit.cli import main

    assert main.main([*command, "a" * 5000]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: File name too long\n  where: aaaa")
    assert "Traceback" not in error
