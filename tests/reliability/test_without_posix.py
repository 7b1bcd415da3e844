"""The whole path where the modules and functions that Windows lacks are missing.

Hidden from every module but those of Python itself and of NEEDED: the modules HIDDEN. Removed for all, after
psutil is imported, which needs one of them on Linux: ATTRIBUTES. Only from lorakit and data_tools, because
torch names it when it is imported: signal.SIGKILL.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there they are missing anyway")

HIDDEN = ("fcntl", "resource", "termios", "tty", "pwd", "grp")
ATTRIBUTES = {
    "os": ("killpg", "fork", "forkpty", "sysconf", "setsid", "getpgid", "setpgid", "mkfifo", "sync"),
    "signal": ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "alarm", "pause"),
}
NEEDED = ("psutil", "huggingface_hub")  # which import them by the name of the system
SITE = f"""
import builtins, os, signal, sys, types
import psutil
for module, names in {ATTRIBUTES!r}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
own_signal = types.ModuleType("signal")
own_signal.__dict__.update({{k: v for k, v in vars(signal).items() if k != "SIGKILL"}})
plain = builtins.__import__
def hide(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "").partition(".")[0]
    if not level and name.partition(".")[0] in {HIDDEN!r}:
        if importer not in sys.stdlib_module_names and importer not in {NEEDED!r}:
            raise ModuleNotFoundError(f"{{name}} is hidden from {{importer}}", name=name)
    if name == "signal" and importer in ("lorakit", "data_tools"):
        return own_signal
    return plain(name, globals, locals, fromlist, level)
builtins.__import__ = hide
"""
PROOF = """
import os, signal
assert not hasattr(os, "fork") and not hasattr(os, "killpg") and not hasattr(signal, "SIGHUP")
from lorakit.core import platform
assert not hasattr(platform.signal, "SIGKILL")
try:
    import fcntl
except ImportError:
    print("hidden")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables with which Python, and every process that it starts, lacks all that."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_they_are_really_hidden(environment, tmp_path):
    """Of a module of its own: the name __main__ counts as one of Python's."""
    (tmp_path / "site" / "proof.py").write_text(PROOF)
    done = subprocess.run(
        [sys.executable, "-c", "import proof"], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "hidden", done.stderr


def test_every_module_is_imported_without_them(environment):
    """Also those that the path below does not come to."""
    root = Path(__file__).parents[2]
    names = [
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for package in ("lorakit/core", "lorakit/cli", "lorakit/config", "data_tools")
        for file in sorted((root / package).rglob("*.py"))
        if file.stem != "__main__"
    ]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr


def test_the_whole_path_from_images_to_an_export_works_without_them(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.without_posix", str(tmp_path / "work")],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the whole path passes" in done.stdout
