"""Train a recipe: `accelerate launch -m lorakit.training RECIPE [key=value ...]`.

`lorakit train` starts exactly this. The command given again goes on with the run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, set_seed

from lorakit import adapters
from lorakit.config import recipe
from lorakit.config.recipe import Recipe
from lorakit.core import launch, progress, watchdog
from lorakit.core.errors import (
    ConfigError,
    DiskError,
    Interrupted,
    LorakitError,
    MemoryLimitError,
    first_line,
)
from lorakit.core.progress import format_duration
from lorakit.training import regularization, run_plan, sanity_check, setup
from lorakit.training.run_folder import RunFolder
from lorakit.training.trainer import Trainer


def train_recipe(made_recipe: Recipe) -> RunFolder:
    """Train a recipe to its end, or go on with it; returns the run's folder."""
    run = RunFolder(made_recipe.out)
    run.check_places(made_recipe)
    _configure_torch(made_recipe)
    # Others wait while one process fills caches or samples, which may take hours; a dead process is noticed
    # by its closed connection or by the launcher, and the watchdog tells of a silent one.
    patience = InitProcessGroupKwargs(backend=None, timeout=timedelta(days=7))
    AcceleratorState._reset_state(reset_partial_state=True)  # or a process keeps its first run's precision
    accelerator = Accelerator(
        mixed_precision="bf16" if made_recipe.train.precision == "bf16" else "no",
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[patience],
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(launch.handle_signals(_interrupt_setup))
        if accelerator.is_main_process:
            stack.enter_context(run.lock())
            stack.enter_context(progress.progress_listener(run.heartbeat))
        stacks = run.path / f"stacks-{accelerator.process_index}.txt"
        dog = stack.enter_context(watchdog.Watchdog(stacks, run.say, watchdog.timeout_seconds()))
        stack.enter_context(progress.progress_listener(dog.pat))
        _train_locked(made_recipe, run, accelerator)
        accelerator.wait_for_everyone()
    accelerator.end_training()  # or the threads of its process group abort the process at exit
    return run


def _configure_torch(made_recipe: Recipe) -> None:
    set_seed(made_recipe.train.seed)  # nothing of ours draws from it; a library might
    if made_recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch's documentation
    torch.use_deterministic_algorithms(made_recipe.train.deterministic)


def _interrupt_setup(number: int, _: FrameType | None) -> None:
    """While models load and caches fill there is nothing to commit: what is done is on disk already."""
    raise Interrupted("stopped before the first step of this session", signal_number=number)


def _train_locked(made_recipe: Recipe, run: RunFolder, accelerator: Accelerator) -> None:
    main = accelerator.is_main_process
    say = run.say if main else (lambda text: None)
    regularization.check_stratified_batch(made_recipe, accelerator.num_processes)
    plan = run_plan.plan_training(made_recipe, say)
    if main:
        run.begin(made_recipe, plan.inputs | {"processes": str(accelerator.num_processes)})
    accelerator.wait_for_everyone()
    if run.status == "done":
        say(f"this run is finished: {run.path / 'adapter.safetensors'}")
        return
    try:
        _train_planned(made_recipe, plan, run, accelerator, say)
    except Interrupted:
        if main:
            run.update(status="interrupted")
        raise
    except Exception as error:
        if main:
            with contextlib.suppress(DiskError, OSError):  # it may be the disk that failed
                run.update(status="failed", error=first_line(error))
        raise


def _train_planned(
    made_recipe: Recipe,
    plan: run_plan.TrainingPlan,
    run: RunFolder,
    accelerator: Accelerator,
    say: run_plan.LogFn,
) -> None:
    main = accelerator.is_main_process
    began = time.monotonic()
    try:
        made = setup.build_session(
            made_recipe, plan, accelerator.device, main=main, wait=accelerator.wait_for_everyone, say=say
        )
        trainer = Trainer(made, accelerator, run)
        modules, numbers = adapters.count_trainable(*made.networks.values())
        say(
            f"{plan.family.title}: {modules} modules, {numbers:,} trained numbers; {len(made.train.items)}"
            f" images and {len(made.held_out.items)} held out; {made_recipe.train.steps} steps of"
            f" {trainer.total_batch}"
        )
        if main:
            run.update(images=len(plan.items), status="running", error=None)
        trainer.resume()
        trainer.rehearse()
        if trainer.state.step == 0:
            found = sanity_check.check_objective(trainer.cost)
            say(found.text)
            if main:
                run.update(probe=found.facts())
        with launch.handle_signals(trainer.on_signal):
            trainer.fit()
    except torch.OutOfMemoryError as error:  # outside a step: while loading, caching or saving
        raise MemoryLimitError(
            f"out of memory: {first_line(error)}",
            where=f"process {accelerator.process_index}, outside of a step: loading, caching or saving",
            remedy="close what else uses the device; or a smaller base or resolution, in a new run",
        ) from error
    say(f"done in {format_duration(time.monotonic() - began)}: {run.path / 'adapter.safetensors'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `accelerate launch -m lorakit.training`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    launch.configure_process()
    launch.start_missing_processes(given)
    launch.write_pid_file()
    code = _run(given)
    launch.write_exit_code(code)
    if code and "WORLD_SIZE" in os.environ:
        sys.stderr.flush()
        os._exit(code)  # the others may be dead or waiting: nothing of this process's must wait for them
    return code


def _run(given: Sequence[str]) -> int:
    try:
        if not given or given[0] in ("-h", "--help"):
            raise ConfigError("usage: accelerate launch -m lorakit.training RECIPE [key=value ...]")
        train_recipe(recipe.load_recipe(given[0], list(given[1:])))
    except LorakitError as error:
        with contextlib.suppress(OSError, ValueError):  # nobody may be reading
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
