"""Train a recipe: `accelerate launch -m lorakit.training RECIPE [key=value ...]`.

`lorakit train` starts the same processes. The same command again resumes the run.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import FrameType

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed

from lorakit import adapters
from lorakit.config import recipe as recipes
from lorakit.config.recipe import Recipe
from lorakit.core import launch, progress, supervision, watchdog
from lorakit.core.errors import (
    ConfigError,
    DiskError,
    Interrupted,
    MemoryLimitError,
    first_line,
)
from lorakit.models import device as devices
from lorakit.models import memory
from lorakit.training import (
    acceleration_plan,
    data_record,
    numeric_errors,
    phases,
    plan_warnings,
    regularization,
    run_changes,
    run_plan,
    run_precision,
    sanity_check,
    setup,
    sharded_step,
    trackers,
)
from lorakit.training.run_folder import RunFolder
from lorakit.training.run_memory import MemoryRecord
from lorakit.training.step import collective
from lorakit.training.trackers.libraries import check_tracker
from lorakit.training.trainer import Trainer


def train_recipe(recipe: Recipe, *, handle_signals: bool = False, accept_changes: bool = False) -> RunFolder:
    """Train a recipe to its end, or resume it; returns the run's folder.

    A run that was started with other settings, data, base model or software is refused, unless
    `accept_changes` lets it continue from its last checkpoint; what changed is recorded.
    With `handle_signals`, SIGINT and SIGTERM stop the run after its state is saved, and raise Interrupted.
    Seeds, torch's settings and accelerate's state are afterwards what they were before.
    """
    phases.begin_session()
    run = RunFolder(recipe.out)
    run.check_paths(recipe)
    check_tracker(recipe.tracker_config)
    recipe = run_precision.with_precision(recipe)
    devices.check_precision(devices.default_device(), recipe.train.precision)
    with torch_settings(recipe):
        _train_with_accelerate(recipe, run, handle_signals, accept_changes)
    return run


def _train_with_accelerate(
    recipe: Recipe, run: RunFolder, handle_signals: bool, accept_changes: bool
) -> None:
    accelerator = new_accelerator()
    with contextlib.ExitStack() as stack:
        if handle_signals:
            stack.enter_context(launch.handle_signals(interrupt_setup))
        if accelerator.is_main_process:
            stack.enter_context(run.lock())
            stack.enter_context(progress.progress_listener(run.heartbeat))
        stack_traces = run.path / f"stack-traces-{accelerator.process_index}.txt"
        watcher = watchdog.Watchdog(stack_traces, run.log, watchdog.timeout_seconds())
        stack.enter_context(watcher)
        stack.enter_context(progress.progress_listener(watcher.pat))
        try:
            _train_locked(recipe, run, accelerator, handle_signals, accept_changes)
        except Interrupted as stop:
            if run.status != "done":  # or it came too late to stop anything
                if accelerator.is_main_process:
                    record_interruption(run, recipe, stop)
                raise
        _wait_for_everyone(accelerator)
    accelerator.end_training()  # or the threads of its process group abort the process at exit
    AcceleratorState._reset_state(reset_partial_state=True)


def new_accelerator() -> Accelerator:
    """Return the accelerator of a new run; accelerate's state of an earlier one is forgotten."""
    # Others wait while one process fills caches or samples, which may take hours; a process that has died is
    # noticed by its closed connection or by the launcher, and the watchdog reports one that hangs.
    process_group = InitProcessGroupKwargs(backend=None, timeout=timedelta(days=7))
    AcceleratorState._reset_state(reset_partial_state=True)  # or a process keeps its first run's precision
    return Accelerator(
        mixed_precision="no",  # weights have the precision, and `loss_scale` scales
        cpu=devices.default_device().type == "cpu",
        kwargs_handlers=[process_group],
    )


def _wait_for_everyone(accelerator: Accelerator) -> None:
    with collective(accelerator, 0):
        accelerator.wait_for_everyone()


def record_interruption(run: RunFolder, recipe: Recipe, stop: Interrupted) -> None:
    """Note an interruption in run.json and log.txt, where it is read when the terminal is gone."""
    if run.exists:
        run.update_record(status="interrupted")
        if step := run.record().get("checkpoint_step"):
            run.heartbeat("train", step, recipe.train.steps, 0.0, at_once=True)
        with progress.silent():  # it is printed as the last line
            run.log(str(stop))


@contextlib.contextmanager
def torch_settings(recipe: Recipe) -> Iterator[None]:
    """Seed all generators and set determinism within the block; restore both afterwards.

    lorakit uses keyed generators only, but a library might use a global one.
    """
    states = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        set_seed(recipe.train.seed)
        if recipe.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by torch's documentation
        set_deterministic(recipe.train.deterministic)
        try:
            yield
        finally:
            set_deterministic(deterministic)
            random.setstate(states[0])
            np.random.set_state(states[1])


def set_deterministic(mode: bool) -> None:
    """Set the determinism of torch's operations and, if it is used, of its compiler.

    `torch.use_deterministic_algorithms` does the same, but imports the whole compiler for it.
    """
    torch.set_deterministic_debug_mode("error" if mode else "default")
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(mode))  # read when the compiler is imported
    if compiler := sys.modules.get("torch._inductor.config"):
        compiler.deterministic = mode  # type: ignore[attr-defined]


def interrupt_setup(number: int, _: FrameType | None) -> None:
    """Stop while models load and caches fill: nothing has to be saved, as caches are on disk already."""
    raise Interrupted("stopped before the first step of this session", signal_number=number)


def _train_locked(
    recipe: Recipe, run: RunFolder, accelerator: Accelerator, handle_signals: bool, accept_changes: bool
) -> None:
    is_main, changes = accelerator.is_main_process, None
    log = run.log if is_main else (lambda text: None)
    regularization.check_stratified_batch(recipe, accelerator.num_processes)
    log(phases.phase("reading the data"))
    plan = run_plan.plan_training(recipe, log)
    if is_main:
        inputs = {**plan.input_hashes, "num_processes": accelerator.num_processes}
        changes = run_changes.start_or_resume(run, recipe, inputs, accept_changes=accept_changes)
    _wait_for_everyone(accelerator)
    if run.status == "done":
        log(f"this run is finished: {run.adapter_file}")
        if is_main:
            trackers.send_rest(recipe.tracker_config, run.path, log)
        return
    total_batch_size = recipe.effective_batch * accelerator.num_processes
    for text in plan_warnings.plan_warnings(
        recipe, plan.split.train, total_batch_size=total_batch_size, native_side=plan.native_side
    ):
        log(f"warning: {text}")
    try:
        _train_planned(recipe, plan, run, accelerator, log, handle_signals, changes)
    except Exception as error:
        if is_main:
            with contextlib.suppress(DiskError, OSError):  # it may be the disk that failed
                run.update_record(status="failed", error=first_line(error))
        raise


def _train_planned(
    recipe: Recipe,
    plan: run_plan.TrainingPlan,
    run: RunFolder,
    accelerator: Accelerator,
    log: run_plan.LogFn,
    handle_signals: bool,
    changes: run_changes.SessionChanges | None,
) -> None:
    is_main = accelerator.is_main_process
    try:
        session = setup.build_session(
            recipe,
            plan,
            accelerator.device,
            main=is_main,
            wait_for_everyone=lambda: _wait_for_everyone(accelerator),
            num_processes=accelerator.num_processes,
            log=log,
            shard=sharded_step.check_sharding(recipe, accelerator.num_processes),
            memory_record=MemoryRecord(run),
        )
        trainer = Trainer(session, accelerator, run)
        log(_overview(session, trainer))
        if is_main:
            run.update_record(num_images=len(plan.items), status="running", error=None)
            data_record.record_data(run, plan, trainer.training_step.total_batch_size, log)
        with contextlib.ExitStack() as stack:
            stack.enter_context(acceleration_plan.accelerated(trainer))
            begin_training(trainer, changes)
            if handle_signals:
                stack.enter_context(launch.handle_signals(trainer.on_signal))
                stack.enter_context(supervision.saving_state())
            trainer.fit()
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):  # outside a step: while loading, caching or saving
            raise
        raise MemoryLimitError(
            f"out of memory: {first_line(error)}",
            where=f"process {accelerator.process_index}, outside of a step: loading, caching or saving",
            remedy="close other programs that use this memory; or use a smaller base model, in a new run",
        ) from error
    if is_main:
        log(phases.done_lines(run, recipe))


def begin_training(trainer: Trainer, changes: run_changes.SessionChanges | None) -> None:
    """Load the newest checkpoint, find out that the largest batch fits, and check the objective of a new run.

    Raises NumericError for a base model whose predictions are not finite.
    """
    trainer.resume(changes)
    trainer.training_step.try_largest_batch()
    if trainer.state.step == 0:
        check = sanity_check.check_objective(trainer.training_step.loss, trainer.session.train_set)
        if not math.isfinite(check.relative_error):
            raise numeric_errors.untrained_error(trainer.session)
        trainer.log(check.summary)
        if trainer.is_main_process:
            trainer.run.update_record(objective_check=check.to_json())


def _overview(session: setup.Session, trainer: Trainer) -> str:
    """One line for the log: model, adapter, data, steps."""
    size = adapters.count_trainable(*session.networks.values())
    return (
        f"{session.family.title}: {size.num_modules} modules, {size.num_parameters:,} trainable parameters;"
        f" {len(session.train_set.items)} images and {len(session.held_out_set.items)} held out;"
        f" {session.recipe.train.steps} steps of {trainer.training_step.total_batch_size}"
        f" in {session.recipe.train.precision}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a recipe in this process and print why it ends early; return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    code = _run(arguments)
    if code and "WORLD_SIZE" in os.environ:
        sys.stderr.flush()
        os._exit(code)  # other processes may be dead or waiting: no cleanup of this one may wait for them
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            raise ConfigError("usage: accelerate launch -m lorakit.training RECIPE [key=value ...]")
        words = [word for word in arguments if word != launch.ACCEPT_CHANGES]
        recipe = recipes.load_recipe(words[0], words[1:])
        train_recipe(recipe, handle_signals=True, accept_changes=launch.ACCEPT_CHANGES in arguments)
    except (Exception, Interrupted) as error:
        return supervision.report_end(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
