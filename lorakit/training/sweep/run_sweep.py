"""A sweep in this process: all members trained on one base model, each into the folder of a run of its own.

A member's folder is that of a single run, and so are its bytes (float32 on a CPU): it can be evaluated,
exported, resumed and trained on alone. A sweep that was stopped resumes each member from its own newest
checkpoint. A member that fails, because it diverges for example, does not stop the others.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from lorakit.config.recipe import Recipe
from lorakit.core import launch, progress, supervision
from lorakit.core.errors import ConfigError, Interrupted, LorakitError, first_line
from lorakit.core.progress import Progress, print_line
from lorakit.models import device as devices
from lorakit.models import memory
from lorakit.models.memory import placement
from lorakit.training import data_record, phases, run_changes, run_plan, run_precision, setup, train
from lorakit.training.run_folder import RunFolder
from lorakit.training.run_memory import MemoryRecord
from lorakit.training.sweep import comparison, comparison_page, sweep_record
from lorakit.training.sweep.grid import Member
from lorakit.training.sweep.joint_network import JointNetwork
from lorakit.training.sweep.meeting import Meeting, Participant
from lorakit.training.sweep.shared_base import shared_copy, shared_pipeline
from lorakit.training.trackers.libraries import check_tracker
from lorakit.training.trainer import SAME_SIGNAL_SECONDS, Trainer
from lorakit.training.validation import ValidationLoss


@dataclass
class MemberRun:
    """A member of a running sweep."""

    member: Member
    run: RunFolder
    trainer: Trainer
    changes: run_changes.SessionChanges | None

    @property
    def steps_left(self) -> int:
        """Optimizer steps to do."""
        return self.member.recipe.train.steps - self.trainer.state.step


@dataclass
class SweepResult:
    """The end of a sweep: finished and failed members, and the number of forward passes."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """First line of the error of each member that failed."""
    num_passes: int = 0
    num_calls: int = 0
    """Forward passes that single runs would have taken."""


class SharedBase:
    """The base model of a sweep, loaded once; `load` is what each member's session is built with."""

    def __init__(self) -> None:
        self._pipe: Any = None
        self.settings: memory.MemorySettings | None = None

    def load(
        self,
        recipe: Recipe,
        plan: run_plan.TrainingPlan,
        settings: memory.MemorySettings,
        device: torch.device,
    ) -> Any:
        """Return a pipeline whose networks are shared copies, into which adapters can be injected."""
        if settings.stream or settings.offload_activations or settings.offload_modulation:
            raise ConfigError(
                "a sweep keeps the base model on the device: its members use the same weights in turn",
                where="memory",
                remedy="set memory.stream=0, memory.offload_activations=false and"
                " memory.offload_modulation=false; or train the members one by one",
            )
        if self._pipe is None:
            self._pipe = setup.load_trained_components(recipe, plan, settings, device)
            self.settings = settings
        return shared_pipeline(plan.family, self._pipe)

    def joint_denoiser(self, plan: run_plan.TrainingPlan) -> torch.nn.Module:
        """Return another shared copy of the denoiser, without an adapter."""
        return shared_copy(plan.family.denoiser(self._pipe))


def run_sweep(
    members: Sequence[Member], out: Path, *, handle_signals: bool = False, accept_changes: bool = False
) -> SweepResult:
    """Train all members to their end, or resume them; writes the comparison afterwards.

    With `handle_signals`, SIGINT and SIGTERM let each member save its step, and raise Interrupted. Raises
    LorakitError for a problem of the recipe or the data; errors of single members are in the result.
    """
    phases.begin_session()
    folders = [member.recipe.out for member in members]
    members = [replace(m, recipe=run_precision.with_precision(m.recipe, folders)) for m in members]
    for member in members:
        run = RunFolder(member.recipe.out)
        run.check_paths(member.recipe)
        check_tracker(member.recipe.tracker_config)
    devices.check_precision(devices.default_device(), members[0].recipe.train.precision)
    sweep_record.write_record(out, members)
    result = SweepResult()
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(RunFolder(member.recipe.out).lock())
        if handle_signals:
            stack.enter_context(launch.handle_signals(train.interrupt_setup))
        stack.enter_context(train.torch_settings(members[0].recipe))
        try:
            _run_locked(members, result, handle_signals, accept_changes)
        except Interrupted as stop:
            for member in members:
                run = RunFolder(member.recipe.out)
                if run.exists and run.status not in ("done", "failed"):
                    train.record_interruption(run, member.recipe, stop)
            raise
        finally:
            if any(RunFolder(member.recipe.out).exists for member in members):
                print_line(f"comparison: {comparison_page.write_comparison(out)}")
    return result


def _run_locked(
    members: Sequence[Member], result: SweepResult, handle_signals: bool, accept_changes: bool
) -> None:
    accelerator = train.new_accelerator()
    base, runs = SharedBase(), list[MemberRun]()
    plan: run_plan.TrainingPlan | None = None
    for member in members:
        with progress.silent(bool(runs)):  # the first member says what is common to all
            prepared = _prepare(member, base, accelerator, accept_changes)
        if isinstance(prepared, run_plan.TrainingPlan):
            print_line(f"{member.name}: finished before")
            result.finished.append(member.name)
        else:
            runs.append(prepared[0])
            plan = prepared[1]
    if runs and plan is not None:
        _train_together(runs, plan, base, result, handle_signals)


def _prepare(
    member: Member, base: SharedBase, accelerator: Accelerator, accept_changes: bool
) -> tuple[MemberRun, run_plan.TrainingPlan] | run_plan.TrainingPlan:
    """Return a member that is ready to train, with its plan; only the plan if it is finished."""
    recipe, run = member.recipe, RunFolder(member.recipe.out)
    plan = run_plan.plan_training(recipe, run.log)
    inputs = {**plan.input_hashes, "num_processes": 1}
    changes = run_changes.start_or_resume(run, recipe, inputs, accept_changes=accept_changes)
    if run.status == "done":
        return plan
    session = setup.build_session(
        recipe,
        plan,
        accelerator.device,
        main=True,
        wait_for_everyone=lambda: None,
        log=run.log,
        load=base.load,
        memory_record=MemoryRecord(run),
    )
    trainer = Trainer(session, accelerator, run)
    run.update_record(num_images=len(plan.items), status="running", error=None)
    data_record.record_data(run, plan, trainer.training_step.total_batch_size, run.log)
    return MemberRun(member, run, trainer, changes), plan


def _train_together(
    runs: Sequence[MemberRun],
    plan: run_plan.TrainingPlan,
    base: SharedBase,
    result: SweepResult,
    handle_signals: bool,
) -> None:
    networks = [one.trainer.session.denoiser for one in runs]
    joint = JointNetwork(base.joint_denoiser(plan), networks)
    if base.settings is not None:
        placement.place(joint.network, base.settings, runs[0].trainer.session.device)
    participants = [
        Participant(number, one.trainer.training_step, functools.partial(_train_member, one))
        for number, one in enumerate(runs)
    ]
    for one, participant in zip(runs, participants, strict=True):
        participant.attend(one.trainer.session.denoiser)
    meeting = Meeting(joint, participants)
    print_line(phases.phase(f"training {len(runs)} adapters together"))
    with contextlib.ExitStack() as stack:
        if handle_signals:
            stack.enter_context(launch.handle_signals(_StopAll(runs)))
            stack.enter_context(supervision.saving_state())
        _run_meeting(meeting, runs)
    result.num_passes, result.num_calls = meeting.num_joined, meeting.num_calls
    _collect(runs, participants, result)


def _train_member(one: MemberRun) -> None:
    """Train a member to its end, in its own thread: what a single run does after its session is built."""
    train.begin_training(one.trainer, one.changes)
    one.trainer.fit()
    _store_losses(one)
    one.run.log(phases.done_lines(one.run, one.member.recipe))


def _store_losses(one: MemberRun) -> None:
    """Store the losses of the held-out images, by which the members are compared."""
    held_out = one.trainer.session.held_out_set
    if held_out.items:
        step = one.trainer.training_step
        with step.averages.applied():
            losses = ValidationLoss(step.loss, held_out).image_losses(quiet=True)
        hashes = [item.record.content_hash for item in held_out.items]
        comparison.store_losses(one.run.path.parent, one.member.name, dict(zip(hashes, losses, strict=True)))


def _run_meeting(meeting: Meeting, runs: Sequence[MemberRun]) -> None:
    """Run the meeting with one line of progress, the heartbeats of all runs and their logs in files only."""
    total = sum(one.member.recipe.train.steps for one in runs)
    with Progress("sweep", total) as bar, progress.silent():
        for _ in meeting.run():
            done = sum(one.trainer.state.step for one in runs)
            if not bar.done and done:
                bar.start = bar.done = done  # of earlier sessions: they do not count for the speed
                bar.started_at = time.monotonic()
            ended = sum(participant.has_ended for participant in meeting.participants)
            bar.update(done, f"{len(runs) - ended} of {len(runs)} adapters")
            for one in runs:
                step = one.trainer.state.step
                one.run.heartbeat("train", step, one.member.recipe.train.steps, bar.seconds_left)


class _StopAll:
    """The signal handler of a sweep: first signal, every member saves its step; second, the process ends."""

    def __init__(self, runs: Sequence[MemberRun]) -> None:
        self.runs, self.stopped_at = list(runs), 0.0

    def __call__(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.stopped_at:
            if now - self.stopped_at > SAME_SIGNAL_SECONDS:
                os._exit(128 + number)
            return
        self.stopped_at = now
        for one in self.runs:
            one.trainer.stop_signal, one.trainer.stopped_at = number, now


def _collect(runs: Sequence[MemberRun], participants: Sequence[Participant], result: SweepResult) -> None:
    """Record how each member ended; raises Interrupted if they were stopped, and errors of the program."""
    stops, crashes = list[Interrupted](), list[BaseException]()
    for one, participant in zip(runs, participants, strict=True):
        name, error = one.member.name, participant.error
        if error is None:
            result.finished.append(name)
        elif isinstance(error, Interrupted):
            stops.append(error)
        else:
            result.failed[name] = first_line(error) if isinstance(error, Exception) else str(error)
            with contextlib.suppress(LorakitError, OSError):  # it may be the disk that failed
                one.run.update_record(status="failed", error=result.failed[name])
            print_line(f"{name}: failed: {result.failed[name]}")
            if not isinstance(error, LorakitError):
                crashes.append(error)
    if stops:
        steps = sorted({one.trainer.state.step for one in runs})
        where = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        message = f"stopped after {where}, which are saved; the same command goes on"
        raise Interrupted(message, signal_number=stops[0].exit_code - 128)
    if crashes:
        raise crashes[0]
