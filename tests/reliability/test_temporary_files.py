"""A training needs no folder for temporary files, and leaves nothing in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.long_tier import long, some_long
from tests.reliability import commands, inject
from tests.reliability.commands import Command

FULL = """
def full(*arguments, **options):
    raise OSError(28, "No space left on device")
for name in ("mkdtemp", "mkstemp", "_mkstemp_inner", "_get_default_tempdir", "NamedTemporaryFile", "mktemp"):
    setattr(module, name, full)
"""


@pytest.mark.parametrize("num_processes", some_long([1, 2], 1))
def test_a_full_folder_for_temporary_files_does_not_stop_a_run_whose_out_has_room(num_processes, tmp_path):
    command = Command(tmp_path, num_processes, steps=4)
    hook = inject.environment(tmp_path / "hook", "tempfile", FULL, ranks="01")
    process = command.start(**hook)
    try:
        assert process.wait(commands.HANG) == 0, command.printed()
    finally:
        commands.end_all(process.pid)
    assert (command.run / "adapter.safetensors").is_file()


@pytest.mark.skipif(os.name == "nt", reason="about POSIX signals")
@pytest.mark.parametrize(
    "part", ["command", pytest.param("launcher", marks=long), pytest.param("trainer", marks=long)]
)
def test_a_killed_launch_leaves_no_temporary_folders(part, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = Command(tmp_path, 2, steps=5000)
    process = command.start(TMPDIR=str(folder))
    try:
        command.wait_until(process, lambda: len(commands.descendants(process.pid)) >= 3)
        commands.wait_for_end(commands.kill(part, process), process)
    finally:
        commands.end_all(process.pid)
    assert names(folder) == []


def names(folder: Path) -> list[str]:
    """What is left of lorakit and of the launcher."""
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(("lorakit", "torchelastic"))]
