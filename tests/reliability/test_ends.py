"""Every early end of a training: its exit code, and last lines that say what happened and what comes next."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lorakit.core import launch, storage
from lorakit.training import crashes
from tests.long_tier import long
from tests.reliability import commands, inject
from tests.reliability.commands import Command

posix = pytest.mark.skipif(os.name == "nt", reason="about POSIX signals")
CODES = {"SIGTERM": 143, "SIGINT": 130}


def run_folder(root: Path, steps: list[int], status: str = "running") -> Path:
    """The folder of a run whose training process is gone."""
    record = {
        "settings": {"train.steps": 9, "train.batch_size": 1, "train.accumulate": 1},
        "inputs": {"num_processes": 1},
        "versions": {},
        "status": status,
    }
    storage.write_json(root / "run.json", record)
    storage.write_text(root / "recipe.yaml", "base: tiny-dit\n")
    for step in steps:
        storage.commit_folder(root / f"checkpoints/step-{step:08d}", {"a": b"a"})
    return root


# ---- killed by the system ----------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("SIGKILL", 137, "interrupted"),
        ("SIGSEGV", 139, "failed"),
        ("SIGABRT", 134, "failed"),
        ("SIGBUS", 135, "failed"),
    ],
)
def test_a_killed_trainer_is_named_with_what_is_saved_and_the_next_command(
    name, code, status, tmp_path, capfd
):
    run = run_folder(tmp_path / "my run", [4, 8])
    script = "import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, (0, 0));"
    script += f"os.kill(os.getpid(), signal.{name})"
    command = [sys.executable, "-c", script]
    assert launch.run_training(command, lambda crash: crashes.record_end(run, crash)) == code
    last = capfd.readouterr().err.strip().splitlines()[-3:]
    assert last[0].startswith(f"error: the training process was ended by {name}")
    assert "step 8 is saved" in last[1]
    assert f"lorakit resume '{run}'" in last[2]
    record = storage.read_json(run / "run.json")
    assert record["status"] == status
    assert name in record["error"]


@posix
@pytest.mark.parametrize("status", ["done", "failed", "interrupted"])
def test_a_status_that_the_trainer_has_written_stays(status, tmp_path):
    run = run_folder(tmp_path / "run", [], status)
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    assert launch.run_training(command, lambda crash: crashes.record_end(run, crash)) == 137
    assert storage.read_json(run / "run.json")["status"] == status


@posix
def test_the_status_of_a_run_that_another_process_has_taken_over_stays(tmp_path):
    run = run_folder(tmp_path / "run", [])
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with storage.file_lock(run / storage.LOCK) as held:
        assert held
        launch.run_training(command, lambda crash: crashes.record_end(run, crash))
    assert storage.read_json(run / "run.json")["status"] == "running"


# ---- stopped before the first step -------------------------------------------------------------------------


def stop_at(command: Command, module: str, name: str, tmp_path: Path) -> int:
    """Run a command whose trainer gets a signal when it begins to import a module."""
    fault = f"import os, signal, time; os.kill(os.getpid(), signal.{name}); time.sleep(0.05)"
    process = command.start(**inject.environment(tmp_path / "hook", module, "", before=fault))
    try:
        return process.wait(commands.HANG)
    finally:
        commands.end_all(process.pid)


@posix
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "SIGINT"),
        ("lorakit.training.sanity_check", "SIGTERM"),
        pytest.param("torch", "SIGTERM", marks=long),
        pytest.param("lorakit.training.sanity_check", "SIGINT", marks=long),
        pytest.param("peft.tuners.lora", "SIGINT", marks=long),
        pytest.param("peft.tuners.lora", "SIGTERM", marks=long),
    ],
)
def test_a_signal_within_an_import_ends_the_command_with_one_line(module, name, tmp_path):
    command = Command(tmp_path)
    assert stop_at(command, module, name, tmp_path) == CODES[name], command.printed()
    assert command.last_line().startswith("stopped before the first step")
    assert "run the same command again" in command.last_line()
    assert "Traceback" not in command.printed()
    assert "error:" not in command.printed()
    if (command.run / "run.json").exists():
        assert command.record()["status"] == "interrupted"


@posix
@pytest.mark.parametrize("name", CODES)
def test_a_signal_to_the_command_itself_ends_it_with_one_line(name, tmp_path):
    command = Command(tmp_path)
    process = command.start()
    try:
        command.wait_until(process, lambda: bool(commands.trainers(process.pid)))
        began = time.monotonic()
        process.send_signal(getattr(signal, name))
        assert process.wait(commands.HANG) == CODES[name], command.printed()
    finally:
        commands.end_all(process.pid)
    assert time.monotonic() - began < 30
    assert command.last_line().startswith("stopped before the first step")
    assert "Traceback" not in command.printed()


@posix
@pytest.mark.parametrize("name", CODES)
def test_a_signal_before_the_trainer_starts_ends_the_command_with_one_line(name, tmp_path):
    command = Command(tmp_path)
    fault = f"import os, signal; os.kill(os.getpid(), signal.{name})"
    hook = inject.environment(tmp_path / "hook", "lorakit.config.recipe", fault)
    process = command.start(**hook)
    assert process.wait(commands.HANG) == CODES[name], command.printed()
    assert command.printed().strip() == "interrupted; run the same command again to go on"


# ---- one of two processes ----------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("ranks", "statement", "code", "last"),
    [
        ("1", "from lorakit.core.errors import NumericError; raise NumericError('a fault')", 6, "a fault"),
        pytest.param("0", "raise ZeroDivisionError('a bug of one')", 1, "ZeroDivisionError: a bug of one",
                     marks=long),
        pytest.param("01", "from lorakit.core.errors import DataError; raise DataError('of both')", 3,
                     "of both", marks=long),
    ],
    ids=["second", "first", "both"],
)  # fmt: skip
def test_the_error_of_one_of_two_processes_is_the_last_line_and_the_exit_code(
    ranks, statement, code, last, tmp_path
):
    command = Command(tmp_path, 2)
    process = command.start(**inject.at_step_three(tmp_path / "hook", statement, ranks=ranks))
    try:
        command.wait_until(process, lambda: command.steps() >= 3)
        began = time.monotonic()
        assert process.wait(commands.HANG) == code, command.printed()
    finally:
        commands.end_all(process.pid)
    assert time.monotonic() - began < 30
    assert command.last_line().endswith(last)
    assert command.printed().count(last) == 1
    assert "ChildFailedError" not in command.printed()
    assert "another process" not in command.printed()


@posix
def test_an_error_in_the_recipe_is_printed_once_for_two_processes(tmp_path):
    command = Command(tmp_path, 2)
    command.words += ["train.seed=-1"]
    process = command.start()
    assert process.wait(commands.HANG) == 2, command.printed()
    assert command.printed().count("error:") == 1
    assert "Traceback" not in command.printed()


@posix
def test_ctrl_c_in_training_says_what_is_saved_and_is_no_error(tmp_path):
    command = Command(tmp_path, steps=2000)
    process = command.start()
    try:
        command.wait_for_steps(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(commands.HANG) == 130, command.printed()
    finally:
        commands.end_all(process.pid)
    step = command.saved_step()
    assert (
        command.last_line()
        == f"stopped after step {step}, which is saved; run the same command again to go on"
    )
    assert "error" not in command.printed()
    assert command.last_line() in (command.run / "log.txt").read_text()
    assert command.record()["status"] == "interrupted"
