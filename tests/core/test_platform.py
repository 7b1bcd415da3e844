"""Functions that differ by operating system."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from lorakit.core import platform

posix = pytest.mark.skipif(sys.platform == "win32", reason="about POSIX")


@posix
def test_a_full_pipe_takes_nothing_and_a_closed_one_is_an_error():
    reader, writer = os.pipe()
    platform.set_nonblocking(writer)
    data = b"x" * 4096
    while platform.write_available(writer, data):
        pass
    started = time.monotonic()
    platform.wait_writable(writer, 0.2)
    assert 0.1 < time.monotonic() - started < 5
    os.read(reader, 1 << 16)
    platform.wait_writable(writer, 10)
    assert platform.write_available(writer, data)
    os.close(reader)
    with pytest.raises(OSError, match="pipe"):
        platform.write_available(writer, data)
    os.close(writer)


def test_ending_a_group_ends_the_children_of_a_process_too(tmp_path):
    import psutil

    child = "import time; time.sleep(60)"
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\ntime.sleep(60)\n"
    )
    process = platform.start_in_own_group([sys.executable, "-c", parent])
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    grandchild = int((tmp_path / "pid").read_text())
    platform.end_group(process, force=True)
    process.wait(30)
    while psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_parent_is_alive_while_it_waits():
    code = f"from lorakit.core import platform; assert platform.is_parent_alive({os.getpid()})"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "from lorakit.core import platform; assert not platform.is_parent_alive(2 ** 22 + 1)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_replaced_process_runs_the_other_command():
    code = (
        "import sys; from lorakit.core import platform\n"
        "platform.replace_process([sys.executable, '-c', 'import sys; sys.exit(7)'])\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7


def test_the_memory_of_this_machine_is_known():
    assert platform.total_memory() > 1 << 28


def test_a_folder_is_writable_unless_it_says_otherwise(tmp_path, monkeypatch):
    assert platform.is_writable_folder(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not platform.is_writable_folder(tmp_path)


def sharing_violation() -> PermissionError:
    """The error of Windows for a file that another process has open."""
    error = PermissionError(13, "used by another process")
    error.winerror = 32
    return error


@pytest.mark.parametrize("error", [sharing_violation(), PermissionError(13, "denied"), OSError(28, "full")])
def test_other_errors_of_a_file_are_not_repeated_for_long(error):
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        platform.retry_while_open(fail, seconds=0.2)
    assert (len(calls) > 1) == hasattr(error, "winerror")


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, None),
        (1, None),
        (143, None),
        (-9, "SIGKILL"),
        (-11, "SIGSEGV"),
        (0xC0000005, "an access violation"),
    ],
)
def test_a_return_code_says_how_a_process_was_ended(code, how):
    assert platform.describe_crash(code) == how


def test_a_process_is_alive_until_it_has_ended():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert platform.is_process_alive(child.pid)
    platform.end_process(child.pid)
    deadline = time.monotonic() + 30
    while platform.is_process_alive(child.pid):  # it is a zombie, which counts as ended
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.wait()
    platform.end_process(child.pid)
