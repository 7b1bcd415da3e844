"""Train a recipe: `accelerate launch -m lorakit.train RECIPE [key=value ...]`.

`lorakit train` starts exactly this. The command given again goes on with the run.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from lorakit import adapter, launch, recipe, session
from lorakit.errors import ConfigError, Interrupted, LorakitError, MemoryLimitError
from lorakit.progress import duration
from lorakit.recipe import Recipe
from lorakit.rundir import RunFolder
from lorakit.trainer import Trainer


def train(made_recipe: Recipe) -> RunFolder:
    """Train a recipe to its end, or go on with it; returns the run's folder."""
    run = RunFolder(made_recipe.out)
    run.check_places(made_recipe)
    precision = "bf16" if made_recipe.train.precision == "bf16" else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    set_seed(made_recipe.train.seed)  # nothing of ours draws from it; a library might
    with launch.signals(_stop_now), run.lock() if accelerator.is_main_process else contextlib.nullcontext():
        _train_locked(made_recipe, run, accelerator)
    return run


def _stop_now(number: int, _: FrameType | None) -> None:
    """While models load and caches fill there is nothing to commit: what is done is on disk already."""
    raise Interrupted("stopped before the first step of this session", signal_number=number)


def _train_locked(made_recipe: Recipe, run: RunFolder, accelerator: Accelerator) -> None:
    main = accelerator.is_main_process
    say = run.say if main else (lambda text: None)
    plan = session.plan(made_recipe, say)
    if main:
        run.begin(made_recipe, plan.inputs | {"processes": str(accelerator.num_processes)})
    accelerator.wait_for_everyone()
    if run.status == "done":
        say(f"this run is finished: {run.path / 'adapter.safetensors'}")
        return
    made = session.build(made_recipe, plan, accelerator.device, main=main, wait=accelerator.wait_for_everyone)
    trainer = Trainer(made, accelerator, run)
    modules, numbers = adapter.count(made.denoiser)
    say(
        f"{plan.family.title}: {modules} modules, {numbers:,} trained numbers; {len(made.train.items)} images"
        f" and {len(made.held_out.items)} held out; {made_recipe.train.steps} steps of {trainer.total_batch}"
    )
    if main:
        run.update(images=len(plan.items))
    trainer.resume()
    began = time.monotonic()
    try:
        with launch.signals(trainer.on_signal):
            trainer.fit()
    except Interrupted:
        if main:
            run.update(status="interrupted", step=trainer.state.step)
        raise
    except torch.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"out of memory at step {trainer.state.step}: {str(error).splitlines()[0]}",
            remedy="set memory: {checkpoint: 1}, halve train.batch_size and double train.accumulate",
        ) from error
    say(f"done in {duration(time.monotonic() - began)}: {run.path / 'adapter.safetensors'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `accelerate launch -m lorakit.train`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    code = 0
    launch.settle()
    launch.start_missing(given)
    launch.announce()
    try:
        if not given or given[0] in ("-h", "--help"):
            raise ConfigError("usage: accelerate launch -m lorakit.train RECIPE [key=value ...]")
        train(recipe.load(given[0], given[1:]))
    except LorakitError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    launch.report(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
