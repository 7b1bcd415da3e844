"""No part of a training that is killed leaves the others running, and the same command goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.long_tier import long, some_long
from tests.reliability import commands
from tests.reliability.commands import Command

posix = pytest.mark.skipif(os.name == "nt", reason="about POSIX signals")
ONE, TWO = 1, 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Command]:
    """A run that nothing has disturbed, of one or two processes."""
    known: dict[int, Command] = {}

    def get(num_processes: int) -> Command:
        if num_processes not in known:
            command = Command(tmp_path_factory.mktemp(f"whole-{num_processes}"), num_processes)
            command.finish()
            known[num_processes] = command
        return known[num_processes]

    return get


@posix
@pytest.mark.parametrize(
    ("num_processes", "parts"),
    [
        (ONE, ["command", "trainer"]),
        pytest.param(TWO, ["launcher", "trainer", "command"], marks=long),
    ],
)
def test_a_killed_part_ends_all_and_the_same_command_goes_on_to_the_same_bytes(
    num_processes, parts, whole, tmp_path
):
    command = Command(tmp_path, num_processes)
    for part in parts:
        process = command.start()
        try:
            command.wait_for_steps(process)
            seconds = commands.wait_for_end(commands.kill(part, process), process)
        finally:
            commands.end_all(process.pid)
        assert seconds < 30
        if part != "trainer":  # the others had to save their last step before they ended
            assert command.saved_step() == command.steps() > 0
            assert command.record()["status"] == "interrupted"
        if part != "command":
            assert process.returncode == 137, command.printed()
            assert "was ended by SIGKILL" in command.printed()
            assert "lorakit resume" in command.last_line()
            assert command.record()["status"] == "interrupted"
        assert "Traceback" not in command.printed()
    assert "resuming from step" in command.finish() or not command.saved_step()
    assert command.result() == whole(num_processes).result()


@posix
def test_a_command_killed_while_its_trainer_imports_leaves_nothing_running(tmp_path):
    command = Command(tmp_path)
    process = command.start()
    try:
        command.wait_until(process, lambda: bool(commands.trainers(process.pid)))
        seconds = commands.wait_for_end(commands.kill("command", process), process)
    finally:
        commands.end_all(process.pid)
    assert seconds < 20
    assert not (command.run / "run.json").exists()


TERMINAL = """
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
print(pid, flush=True)
while True:
    try:
        os.read(terminal, 4096)
    except OSError:
        time.sleep(1)
"""


@posix
def test_a_killed_terminal_lets_the_step_end_and_the_same_command_resumes(whole, tmp_path):
    """The shell of a killed terminal, here the command itself, gets SIGHUP."""
    command = Command(tmp_path)
    terminal = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *command.words[1:]], stdout=subprocess.PIPE, text=True
    )
    assert terminal.stdout is not None
    pid = int(terminal.stdout.readline())
    try:
        command.wait_for_steps(_Process(pid))  # type: ignore[arg-type]
        terminal.send_signal(signal.SIGKILL)
        terminal.wait(10)
        until = time.monotonic() + commands.HANG
        while command.record()["status"] == "running" and time.monotonic() < until:
            time.sleep(0.1)
        assert command.record()["status"] == "interrupted"
    finally:
        commands.end_all(pid)
    command.finish()
    assert command.result() == whole(ONE).result()


class _Process:
    """A process that another one waits for, as `Command` expects one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> None:
        """It cannot be asked."""


@posix
def test_the_same_command_waits_for_a_process_that_is_still_saving(tmp_path):
    command = Command(tmp_path)
    process = command.start()
    try:
        command.wait_for_steps(process)
        (trainer,) = commands.trainers(process.pid)
        trainer.suspend()  # a step that takes long
        process.kill()
        process.wait(10)
        again = command.start()
        command.wait_until(again, lambda: "another process is working on this run" in command.printed())
        trainer.resume()
        assert again.wait(commands.HANG) == 0, command.printed()
    finally:
        for each in (process, again):
            commands.end_all(each.pid)
        commands.wait_for_end([trainer])
    assert "resuming from step" in command.printed()


@posix
def test_a_shell_that_ends_does_not_stop_a_training_it_started(whole, tmp_path):
    """`nohup lorakit train ... &` and `setsid`: the shell, the parent of the command, may end at any time."""
    command = Command(tmp_path)
    line = " ".join(f"'{word}'" for word in command.words)
    shell = f"nohup {line} > /dev/null 2>&1 & echo $!"
    started = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    pid = int(started.stdout)
    try:
        until = time.monotonic() + commands.HANG
        while time.monotonic() < until:
            if (command.run / "run.json").exists() and command.record()["status"] == "done":
                break
            time.sleep(0.1)
    finally:
        commands.end_all(pid)
    assert command.result() == whole(ONE).result()


@long
@posix
@pytest.mark.parametrize("num_processes", some_long([ONE, TWO], ONE))
def test_a_launcher_of_accelerate_that_is_killed_ends_its_trainers(num_processes, tmp_path):
    """`accelerate launch -m lorakit.training`, called directly: there is no command."""
    command = Command(tmp_path, num_processes, steps=5000)
    command.words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes"]
    command.words += [str(num_processes), "-m", "lorakit.training", str(command.recipe)]
    process = command.start()
    try:
        command.wait_for_steps(process)
        seconds = commands.wait_for_end(commands.kill("command", process), process)
    finally:
        commands.end_all(process.pid)
    assert seconds < 30
    assert command.saved_step() == command.steps() > 0
    assert command.record()["status"] == "interrupted"


@posix
@long
@pytest.mark.parametrize("num_processes", [ONE, TWO])
def test_fifty_kills_in_a_row_at_random_moments_end_in_the_same_bytes(num_processes, tmp_path):
    """Every other one while it starts, the others in training."""
    whole = Command(tmp_path / "whole", num_processes, steps=4000)
    process, began = whole.start(), time.monotonic()
    whole.wait_for_steps(process)
    start = time.monotonic() - began
    assert process.wait(10 * commands.HANG) == 0, whole.printed()
    command, seed = Command(tmp_path / "killed", num_processes, steps=4000), time.time_ns()
    draw = random.Random(seed)
    parts = ["command", "trainer"] if num_processes == ONE else ["command", "launcher", "trainer"]
    for number in range(50):
        process = command.start()
        try:
            if number % 2:
                command.wait_for_steps(process, draw.randint(1, 12))
            else:
                until, last = time.monotonic() + draw.uniform(0, start), command.steps() + 12
                while time.monotonic() < until and command.steps() < last:
                    time.sleep(0.01)
            assert process.poll() is None, (seed, command.printed())
            commands.wait_for_end(commands.kill(draw.choice(parts), process), process)
        finally:
            commands.end_all(process.pid)
    command.finish()
    assert command.result() == whole.result(), seed
