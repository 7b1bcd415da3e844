"""A training process and its parents: which end stops it, and what it reports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lorakit.core import process_reports, supervision
from lorakit.core.errors import DataError, Interrupted, ProcessEndedError
from lorakit.core.process_reports import Report, ReportReader


@pytest.mark.parametrize(
    ("words", "is_launcher"),
    [
        (["python", "/venv/bin/accelerate", "launch", "-m", "lorakit.training"], True),
        (["python", "-m", "accelerate.commands.launch", "--cpu"], True),
        (["/venv/bin/python", "/venv/bin/torchrun", "--standalone"], True),
        (["python", "-m", "torch.distributed.run"], True),
        (["python", "-m", "lorakit.training.launcher", "2"], True),
        (["bash"], False),
        (["sh", "-c", "accelerate launch -m lorakit.training r.yaml"], False),
        (["/home/me/accelerate/bin/python", "mine.py"], False),
        (["systemd", "--user"], False),
        ([], False),
    ],
)
def test_only_the_end_of_a_launcher_stops_a_process_without_a_command(words, is_launcher, monkeypatch):
    monkeypatch.setattr(supervision, "parent_command_line", lambda: words)
    assert supervision.find_launcher() == (os.getppid() if is_launcher else 0)


def test_reports_of_several_processes_arrive_whole_though_their_lines_alternate():
    read, write = os.pipe()
    texts = {rank: f"{rank}: größe 🐕 \ud800 " * 50 for rank in range(3)}
    code = (
        "import sys; from lorakit.core.process_reports import Report, write_report\n"
        "text = sys.argv[2].encode('ascii').decode('unicode_escape')\n"
        "for _ in range(20): write_report(1, Report('error', int(sys.argv[1]), 3, text=text))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), text.encode("unicode_escape").decode()], stdout=write
        )
        for rank, text in texts.items()
    ]
    os.close(write)
    reader = ReportReader()
    with open(read, "rb") as pipe:
        reader.read(pipe)
    assert all(child.wait() == 0 for child in children)
    assert len(reader.reports) == 60
    assert all(
        report == Report("error", report.rank, 3, text=texts[report.rank]) for report in reader.reports
    )


@pytest.mark.parametrize(
    ("kinds", "first"),
    [
        (["stopped", "consequence", "error"], "error"),
        (["consequence", "stopped"], "consequence"),
        (["error", "traceback"], "error"),
        (["traceback", "error"], "traceback"),
        (["consequence", "stopped", "crash"], "crash"),
        (["start"], None),
    ],
)
def test_the_report_that_tells_most_is_the_one_of_a_run(kinds, first):
    reader = ReportReader([Report(kind, rank) for rank, kind in enumerate(kinds)])
    end = reader.end()
    assert (end.kind if end else None) == first


def test_a_library_that_aborts_because_another_process_failed_does_not_hide_its_error():
    reader = ReportReader([Report("error", 1, 6, text="the cause"), Report("crash", 0, 134, text="SIGABRT")])
    assert reader.end() == Report("error", 1, 6, text="the cause")


@pytest.mark.parametrize(
    "lines",
    [
        [b"printed by a library\n"],
        [b"\x1elorakit {torn\n"],
        [b"\x1elorakit []\n"],
        [b'\x1elorakit {"kind":1}\n'],
    ],
)
def test_other_lines_are_no_reports(lines):
    reader = ReportReader()
    reader.read([*lines, process_reports._MARK + b'{"kind":"start","rank":0,"code":0,"pid":7,"text":""}\n'])
    assert reader.pids() == [7]


@pytest.mark.parametrize(
    ("error", "kind", "code", "text"),
    [
        (
            Interrupted("stopped after step 3", signal_number=2),
            "stopped",
            130,
            "stopped after",
        ),
        (DataError("bad", where="a.png"), "error", 3, "bad\n  where: a.png"),
        (ProcessEndedError(where="step 3"), "consequence", 1, "another process"),
        (ZeroDivisionError("bug"), "traceback", 1, "ZeroDivisionError: bug"),
    ],
)
def test_each_error_has_its_kind_code_and_text(error, kind, code, text):
    report = supervision.describe_end(error)
    assert (report.kind, report.code) == (kind, code)
    assert text in report.text


@pytest.mark.skipif(os.name == "nt", reason="no signals between processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_whose_main_thread_is_in_a_long_call(number, code):
    """Waiting for the others of several processes, for example, which no handler of Python can interrupt."""
    script = (
        "import hashlib; from lorakit.core import supervision\n"
        "supervision.start(); print('started', flush=True)\n"
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 ** 31 - 1)"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", script], stdout=pipe, stderr=pipe, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(number)
    _, printed = child.communicate(timeout=30)
    assert child.returncode == code
    assert printed == "stopped before the first step of this session; run the same command again to go on\n"
