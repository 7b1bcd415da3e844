"""An evaluation as a table in Weights & Biases, one row for each image."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from lorakit.config.recipe import TrackerConfig, load_recipe
from lorakit.core.errors import LorakitError, first_line
from lorakit.evaluation.report.write import REPORT_FILE
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import Selection
from lorakit.evaluation.selection_file import chosen_variant, is_recommended
from lorakit.training.run_records import RECIPE_FILE
from lorakit.training.trackers.labels import DEFAULT_PROJECT, Labels, resolve_labels
from lorakit.training.trackers.service_backends import WANDB_SETTINGS

_SAMPLE_COLUMNS = ["variant", "step", "strength", "other_origin", "stopped_early"]
_SAMPLE_COLUMNS += ["prompt_id", "kind", "seed", "prompt", "image"]


def log_to_wandb(root: Path, evaluation: Evaluation, selection: Selection | None) -> None:
    """Log the images with their scores, the selected variant and the report.

    A failure of the service is raised as a LorakitError, since the report is written already.
    """
    try:
        import wandb

        places = _labels(root)
        with wandb.init(
            project=places.project or wandb.setup().settings.project or DEFAULT_PROJECT,
            entity=places.entity,
            group=places.group,
            tags=places.tags or None,
            job_type="eval",
            name=evaluation.title,
            dir=os.environ.get("WANDB_DIR") or str(root),
            settings=wandb.Settings(**WANDB_SETTINGS),
        ) as run:
            report = wandb.Html(str(root / REPORT_FILE), inject=False)
            run.log({"images": _samples_table(wandb, root, evaluation), "report": report})
            if selection and (variant := chosen_variant(selection)):
                run.summary["selected"] = variant.name
                run.summary["selected_step"], run.summary["selected_strength"] = (
                    variant.step,
                    variant.strength,
                )
                run.summary["recommended"] = is_recommended(selection)
    except Exception as error:  # a remote service may fail in any way; the files are written already
        remedy = "the report is written; try again later"
        raise LorakitError(f"wandb: {first_line(error)}", where=str(root), remedy=remedy) from error


def _labels(root: Path) -> Labels:
    """Return project, entity, group and tags of the run that is evaluated, or those of the environment."""
    config = TrackerConfig(name="wandb")
    file = root.parent / RECIPE_FILE
    if file.is_file():
        with contextlib.suppress(LorakitError):  # of a recipe that was changed by hand
            stored = load_recipe(file).tracker_config
            config = stored if stored.name == "wandb" else config
    return resolve_labels(config, root.parent, os.environ)


def _samples_table(wandb: Any, root: Path, evaluation: Evaluation) -> Any:
    """Return a wandb table of all images that still exist, with their variant, prompt and scores."""
    names = sorted({name for variant in evaluation.variants for name in variant.scores})
    prompts = {prompt.id: prompt for prompt in evaluation.prompts}
    table = wandb.Table(columns=[*_SAMPLE_COLUMNS, *names])
    for variant in evaluation.variants:
        for key, file in variant.files.items():
            prompt, path = prompts[key.prompt_id], root / file
            image = wandb.Image(str(path)) if path.is_file() else None
            cells = [variant.name, variant.step, variant.strength, variant.is_guest, variant.stopped_early]
            cells += [prompt.id, prompt.kind, key.seed, prompt.prompt, image]
            table.add_data(*cells, *(variant.scores.get(name, {}).get(key) for name in names))
    return table
