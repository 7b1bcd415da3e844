"""lorakit: prepare a dataset, train LoRA adapters for diffusion models, evaluate and export them.

    import lorakit

    lorakit.prepare("photos", class_noun="dog", trigger="sks")
    run = lorakit.train("sd15", dataset="photos", out="runs/dog", optimizer={"lr": 2e-4})
    best = lorakit.evaluate(run, prompts="prompts.jsonl").best or run.checkpoints[-1]
    best.export("comfyui")
    pipe = lorakit.load_pipeline(run.recipe.base, adapter=best, strength=0.8)
    image = lorakit.sample(pipe, ["a photo of sks dog"], seeds=[0])[0]

Importing lorakit loads nothing else: what a name needs is imported when it is first used. No function leaves
a global seed, a signal handler or other global state behind, and none prints unless `verbose` is set.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lorakit.core.version import __version__ as __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from data_tools.dataset import Dataset as Dataset
    from lorakit.adapters.adapter import Adapter as Adapter
    from lorakit.config.recipe import Recipe as Recipe
    from lorakit.core.errors import ConfigError as ConfigError
    from lorakit.core.errors import DataError as DataError
    from lorakit.core.errors import DiskError as DiskError
    from lorakit.core.errors import Interrupted as Interrupted
    from lorakit.core.errors import LorakitError as LorakitError
    from lorakit.core.errors import MemoryLimitError as MemoryLimitError
    from lorakit.core.errors import NumericError as NumericError
    from lorakit.evaluation.result import EvaluationResult
    from lorakit.sampling.diffusers_pipeline import load_pipeline as load_pipeline
    from lorakit.sampling.diffusers_pipeline import sample as sample
    from lorakit.training.run import Checkpoint as Checkpoint
    from lorakit.training.run import Run as Run

    PathLike = str | os.PathLike[str]

_MODULES = {
    "Adapter": "lorakit.adapters.adapter",
    "Checkpoint": "lorakit.training.run",
    "ConfigError": "lorakit.core.errors",
    "DataError": "lorakit.core.errors",
    "Dataset": "data_tools.dataset",
    "DiskError": "lorakit.core.errors",
    "Interrupted": "lorakit.core.errors",
    "LorakitError": "lorakit.core.errors",
    "MemoryLimitError": "lorakit.core.errors",
    "NumericError": "lorakit.core.errors",
    "Recipe": "lorakit.config.recipe",
    "Run": "lorakit.training.run",
    "load_pipeline": "lorakit.sampling.diffusers_pipeline",
    "sample": "lorakit.sampling.diffusers_pipeline",
}
__all__ = ["__version__", "evaluate", "prepare", "sweep", "train", *_MODULES]


def prepare(
    folder: PathLike,
    *,
    resolution: int = 1024,
    class_noun: str | None = None,
    trigger: str | None = None,
    out: PathLike | None = None,
    verbose: bool = False,
    **options: Any,
) -> Dataset:
    """Prepare a folder of images: measure, caption, bucket and check them, and write the manifest.

    Args:
        folder: the folder of images, which are only read. manifest.jsonl, metadata.jsonl and a report are
            written into it.
        resolution: side of a square training image in pixels.
        class_noun: what the images show, such as "dog"; used in captions of images that have none.
        trigger: trigger word to train, such as "sks".
        out: another folder to write to, if `folder` is read-only; it is the dataset then.
        verbose: print the progress.
        options: further fields of `data_tools.options.PrepareOptions`, such as `base` or `crop`.

    Raises ConfigError for invalid options, and DataError if no image can be used or a caption is missing.
    """
    from data_tools.options import PrepareOptions
    from data_tools.out_folder import open_out_folder
    from data_tools.prepare import prepare_dataset
    from lorakit.core import progress

    fields = {"resolution": resolution, "class_noun": class_noun, "trigger": trigger, **options}
    with progress.silent(not verbose):
        return prepare_dataset(open_out_folder(folder, out), PrepareOptions.from_fields(fields))


def train(
    recipe: PathLike | Mapping[str, Any] | Recipe,
    *,
    verbose: bool = False,
    fresh: bool = False,
    accept_changes: bool = False,
    **settings: Any,
) -> Run:
    """Train an adapter in this process, or resume the run in the folder `out`; returns the run.

    Args:
        recipe: name of a built-in recipe such as "sd15", a YAML file, a mapping, or a `Recipe`.
        verbose: print progress and log as `lorakit train` does.
        fresh: start a new run; an earlier one in the folder `out` is renamed to OUT-old-1.
        accept_changes: continue with a run although its settings, data, base model or the software changed.
        settings: top-level keys of the recipe: `dataset`, `out`, `base`, ...; a mapping changes some keys of
            a section, such as `optimizer={"lr": 2e-4}`.

    A plain folder of images is prepared first. KeyboardInterrupt stops the run; the same call resumes it
    from its last checkpoint. Raises ConfigError for an invalid recipe, and the other errors of
    `lorakit.core.errors`.
    """
    from data_tools.prepare_for_training import prepare_for_training
    from lorakit.config.recipe import resolve_recipe
    from lorakit.core import progress
    from lorakit.training.run import Run
    from lorakit.training.start import prepare_training, start_fresh
    from lorakit.training.train import train_recipe

    resolved = resolve_recipe(recipe, **settings)
    with progress.silent(not verbose):
        if fresh:
            start_fresh(resolved)
        prepare_training(resolved, prepare_for_training)
        train_recipe(resolved, accept_changes=accept_changes)
    return Run(resolved.out)


def sweep(
    recipe: PathLike | Mapping[str, Any] | Recipe,
    grid: Mapping[str, Sequence[Any]],
    *,
    verbose: bool = False,
    accept_changes: bool = False,
    **settings: Any,
) -> dict[str, Run]:
    """Train an adapter for each combination of values, together on one base model; returns the runs by name.

    Args:
        recipe: as for `train`; its `out` is the folder of the sweep, where report.html compares the runs.
        grid: recipe keys with their values, such as {"adapter.rank": [4, 16], "optimizer.lr": [1e-4, 3e-4]}.
        verbose: print the progress.
        accept_changes: continue with runs although their settings, data or the software changed.
        settings: top-level keys of the recipe, the same for all adapters.

    Each adapter is that of a run of its own. KeyboardInterrupt stops the sweep; the same call resumes it.
    Raises ConfigError for a key that the adapters must share. A run that fails has the status `failed`.
    """
    from data_tools.prepare_for_training import prepare_for_training
    from lorakit.config.recipe import resolve_recipe
    from lorakit.core import progress
    from lorakit.training.run import Run
    from lorakit.training.start import prepare_training
    from lorakit.training.sweep.grid import axes_of, build_members
    from lorakit.training.sweep.run_sweep import run_sweep

    resolved = resolve_recipe(recipe, **settings)
    members = build_members(resolved, axes_of(grid), resolved.out)
    with progress.silent(not verbose):
        prepare_training(members[0].recipe, prepare_for_training)
        run_sweep(members, resolved.out, accept_changes=accept_changes)
    return {member.name: Run(member.recipe.out) for member in members}


def evaluate(
    run: PathLike | Run,
    *,
    prompts: PathLike | None = None,
    verbose: bool = False,
    **options: Any,
) -> EvaluationResult:
    """Sample and score the base model and all checkpoints of a run, and select one.

    The result has `best` (the selected `Checkpoint`, or None), `scores`, `selection` and `report`, the path
    of report.html.

    Args:
        run: a run or its folder.
        prompts: prompt file; None uses the prompts of the run's recipe.
        verbose: print the progress.
        options: further arguments of `lorakit.evaluation.evaluate_run.evaluate_run`, such as `checkpoints`,
            `strengths` or `references`.

    Raises ConfigError if the run has no prompts or no adapter.
    """
    from pathlib import Path

    from lorakit.core import progress
    from lorakit.evaluation.evaluate_run import evaluate_run
    from lorakit.training.run import Run

    folder = run.path if isinstance(run, Run) else Path(run)
    with progress.silent(not verbose):
        return evaluate_run(folder, prompts=Path(prompts) if prompts else None, **options)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
