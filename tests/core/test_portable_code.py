"""No code outside the platform module uses what only one operating system has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLATFORM = ROOT / "lorakit/core/platform.py"
FILES = sorted([*ROOT.glob("lorakit/**/*.py"), *ROOT.glob("data_tools/**/*.py")])
MODULES = {
    "fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "spwd", "crypt", "select", "selectors",
    "syslog", "msvcrt", "winreg", "_winapi", "curses", "readline", "posix", "nt",
}  # fmt: skip
ATTRIBUTES = {
    "os": {
        "fork", "forkpty", "killpg", "setsid", "setpgid", "getpgid", "getppid", "getuid", "geteuid", "getgid",
        "statvfs", "sync", "set_blocking", "sysconf", "uname", "mkfifo", "mknod", "fchmod", "chown", "lchown",
        "chroot", "nice", "getloadavg", "sched_getaffinity", "sched_setaffinity", "execv", "execve",
        "execvp", "posix_fadvise", "posix_fallocate", "sendfile", "openpty", "ttyname", "wait", "waitpid",
        "WEXITSTATUS", "startfile", "O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "kill", "link",
        "memfd_create", "pread", "pwrite",
    },
    "signal": {
        "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGBREAK", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT",
        "alarm", "pause", "setitimer", "pthread_kill", "sigwait", "pthread_sigmask", "CTRL_C_EVENT",
    },
    "time": {"tzset", "clock_gettime"},
    "socket": {"AF_UNIX"},
    "ctypes": {"windll", "WinDLL", "CDLL"},
}  # fmt: skip
ARGUMENTS = {"start_new_session", "preexec_fn", "creationflags", "pass_fds", "startupinfo", "process_group"}
PATHS = ("/dev/", "/proc/", "/tmp", "/etc/", "/sys/")


def one_system_only(tree: ast.AST) -> Iterator[str]:
    """The names in a module that only one operating system has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {a.name for a in node.names}
            if (node.module or "").split(".")[0] in MODULES and not node.level:
                yield str(node.module)
            yield from (f"{node.module}.{n}" for n in names & ATTRIBUTES.get(node.module or "", set()))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in ATTRIBUTES.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from (k.arg for k in node.keywords if k.arg in ARGUMENTS)
            start = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if start in ("get_context", "set_start_method") and node.args:
                method = getattr(node.args[0], "value", None)
                if method != "spawn":
                    yield f"{start}({method!r})"


def docstrings(tree: ast.AST) -> set[int]:
    """The nodes of a module's docstrings and comments in strings, which are not code."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


@pytest.mark.parametrize("package", ["lorakit", "data_tools"])
def test_only_the_platform_module_uses_what_one_system_has(package):
    found = {}
    for file in FILES:
        if file != PLATFORM and file.is_relative_to(ROOT / package):
            names = sorted(set(one_system_only(ast.parse(file.read_text(encoding="utf-8")))))
            if names:
                found[str(file.relative_to(ROOT))] = names
    assert found == {}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import fcntl", "fcntl"),
        ("from select import select", "select"),
        ("from os import killpg", "os.killpg"),
        ("import os\nos.fork()", "os.fork"),
        ("import signal\nsignal.signal(signal.SIGHUP, f)", "signal.SIGHUP"),
        ("subprocess.Popen(x, preexec_fn=f)", "preexec_fn"),
        ("multiprocessing.get_context('fork')", "get_context('fork')"),
    ],
)
def test_each_way_to_use_such_a_name_is_noticed(code, name):
    assert name in list(one_system_only(ast.parse(code)))
    assert not list(one_system_only(ast.parse("import os, signal\nos.getpid(), signal.SIGTERM")))


def test_no_path_of_one_system_is_written_in_code():
    found = []
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = docstrings(tree)
        for node in ast.walk(tree):
            value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and value.startswith(PATHS) and id(node) not in texts:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {value[:40]!r}")
    assert found == []


def test_every_text_file_is_opened_with_its_encoding():
    """On Windows the default is that of the language of the system, not UTF-8."""
    found = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            keywords = {k.arg for k in node.keywords}
            is_text = name == "write_text" or (name == "read_text" and not node.args)
            if is_text and "encoding" not in keywords and not _is_storage(node):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
            if name == "open" and isinstance(node.func, ast.Name) and "encoding" not in keywords:
                mode = next((k.value for k in node.keywords if k.arg == "mode"), None)
                mode = node.args[1] if len(node.args) > 1 else mode
                if "b" not in str(getattr(mode, "value", "r" if mode is None else "b")):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def _is_storage(call: ast.Call) -> bool:
    """True for `storage.write_text`, which always writes UTF-8."""
    return isinstance(call.func, ast.Name) or getattr(call.func.value, "id", "") == "storage"
