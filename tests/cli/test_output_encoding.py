"""What is printed on a console that has few characters, as those of Windows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TEXT = "собака 🐕 größe"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
@pytest.mark.parametrize("module", ["lorakit", "lorakit.training"])
def test_names_that_the_console_cannot_show_are_escaped(module, encoding, tmp_path):
    """Both the command and the training process, which has no command above it here."""
    words = ["train"] if module == "lorakit" else []
    recipe = tmp_path / f"{TEXT}.yaml"
    done = subprocess.run(
        [sys.executable, "-m", module, *words, str(recipe)],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
    )
    printed = done.stderr.decode(encoding)
    assert done.returncode == 2, printed
    assert "UnicodeEncodeError" not in printed
    assert "\\u0441\\u043e\\u0431" in printed  # собака
    assert "\\U0001f415" in printed
