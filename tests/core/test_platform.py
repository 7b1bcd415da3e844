"""Functions that differ by operating system, and that no other module calls such functions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorakit.core import platform

ROOT = Path(__file__).parents[2]
ONE_SYSTEM_ONLY = re.compile(
    r"\bos\.(fork|forkpty|killpg|setsid|getppid|statvfs|sync|set_blocking|sysconf|getuid|geteuid|uname|execv\w*"
    r"|sched_getaffinity|mkfifo|fchmod|chown)\b|\bsignal\.(SIGHUP|SIGKILL|SIGUSR\d|SIGBREAK|alarm|pause)\b"
    r"|\b(start_new_session|preexec_fn|creationflags)\b"
    r"|^\s*(import|from) (fcntl|select|resource|pwd|grp|termios|pty|msvcrt|winreg)\b",
    re.MULTILINE,
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="about POSIX")


def test_only_this_module_calls_functions_of_one_system():
    files = [*ROOT.glob("lorakit/**/*.py"), *ROOT.glob("data_tools/**/*.py")]
    using = [file for file in files if ONE_SYSTEM_ONLY.search(file.read_text(encoding="utf-8"))]
    assert using == [ROOT / "lorakit/core/platform.py"]


def test_a_lock_is_refused_to_a_second_holder_and_free_after_the_first(tmp_path):
    path = tmp_path / "lock"
    with open(path, "a+b") as first, open(path, "a+b") as second:
        assert platform.lock_file(first)
        assert not platform.lock_file(second)
    with open(path, "a+b") as third:
        assert platform.lock_file(third)


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
