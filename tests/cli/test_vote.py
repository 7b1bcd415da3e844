"""`lorakit eval vote` as a command: Ctrl+C, a kill, and what is printed."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorakit.cli import main
from lorakit.core import platform
from lorakit.evaluation.vote.vote_file import VoteFile
from tests.evaluation.vote.ballots import Client, make_evaluation

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl+C to one process")


@dataclass
class Command:
    """A running command and a client of its page."""

    process: subprocess.Popen[str]
    client: Client
    heading: str

    def end(self, signal_number: int) -> tuple[str, str, int]:
        """Send a signal; return what was printed to stdout and stderr, and the exit code."""
        self.process.send_signal(signal_number)
        out, errors = self.process.communicate(timeout=60)
        return out, errors, self.process.returncode


@contextlib.contextmanager
def command(root: Path, *options: str) -> Iterator[Command]:
    """Start the command and wait for its address."""
    words = [sys.executable, "-m", "lorakit", "eval", "vote", str(root), "--variants", "200,300", *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        heading, line = "", process.stderr.readline()
        while line and not line.startswith("http://127.0.0.1:"):
            heading, line = heading + line, process.stderr.readline()
        assert line, heading
        yield Command(process, Client(line.strip()), heading)
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_prints_the_result_and_a_killed_vote_continues(tmp_path):
    make_evaluation(tmp_path)
    with command(tmp_path, "--voter", "Anna") as first:
        assert "step-200 and step-300" in first.heading
        page = first.client.request()
        assert page.field("voter") == "Anna"
        first.client.vote("left", voter="Anna")
        position = first.client.page("Anna").field("position")
        assert first.end(signal.SIGKILL)[2] == -signal.SIGKILL
    with command(tmp_path, "--json", "--quiet") as second:
        assert second.heading == ""
        assert second.client.page("Anna").field("position") == position
        second.client.vote("too_close", voter="Anna")
        out, errors, code = second.end(signal.SIGINT)
    assert (code, errors) == (0, "")
    answer = json.loads(out)
    assert answer["num_votes"] == 2
    assert [vote.choice for vote in VoteFile(tmp_path).read().votes] == ["left", "too_close"]


def test_finishing_in_the_page_ends_the_command_with_its_summary(tmp_path):
    make_evaluation(tmp_path)
    with command(tmp_path) as running:
        running.client.vote("both_bad")
        assert "can be closed" in running.client.request("finish", {}).text
        out, _ = running.process.communicate(timeout=60)
    assert running.process.returncode == 0
    assert "Not decided yet between step-200 and step-300: no decided pair of 1 (1 both bad)." in out
    assert not platform.is_process_alive(running.process.pid)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--variants", "200"], "two or three different variants"),
        (["--variants", "200,900"], "no variant '900'"),
        (["--port", "70000"], "--port"),
    ],
)
def test_unusable_options_are_refused(tmp_path, capsys, options, words):
    make_evaluation(tmp_path)
    assert main.main(["eval", "vote", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_an_evaluation_has_a_remedy(tmp_path, capsys):
    assert main.main(["eval", "vote", str(tmp_path)]) == 3
    assert "lorakit eval run" in capsys.readouterr().err
