"""Names and paths that another operating system cannot have."""

from __future__ import annotations

import pytest

from lorakit.core import output_paths, platform
from lorakit.core.errors import ConfigError


@pytest.mark.parametrize("length", [180, 240, 258])
def test_a_path_that_leaves_no_room_for_its_files_on_windows_is_refused(length, tmp_path, monkeypatch):
    folder = tmp_path / "a"
    folder = folder.with_name("a" * (length - len(str(tmp_path)) - 1))
    output_paths.check_output_path(folder, "out")
    monkeypatch.setattr(platform, "max_path_length", lambda: 259)
    with pytest.raises(ConfigError, match="too long for Windows") as caught:
        output_paths.check_output_path(folder, "out")
    assert "179 characters" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["runs\\dog", "con", "Nul.txt", "com1", "a:b", "dog.", "dog ", "what?", "a|b"]
)
def test_a_name_that_windows_refuses_is_refused_everywhere(name, tmp_path):
    with pytest.raises(ConfigError, match="not a valid file name on every operating system"):
        output_paths.check_output_path(tmp_path / name / "run", "out")


@pytest.mark.parametrize("name", ["dog", "hund-größe", "собака", "con_", "com10x", ".hidden"])
def test_other_names_are_accepted(name, tmp_path):
    output_paths.check_output_path(tmp_path / name / "run", "out")
