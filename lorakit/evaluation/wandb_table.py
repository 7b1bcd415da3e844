"""An evaluation as a table in Weights & Biases, one row a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorakit.core.errors import LorakitError, first_line
from lorakit.evaluation.report.write import REPORT_FILE
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import Selection

PROJECT = "lorakit"
_SAMPLE_COLUMNS = ["arm", "step", "strength", "prompt_id", "kind", "seed", "prompt", "picture"]


def log_to_wandb(root: Path, evaluation: Evaluation, pick: Selection | None) -> None:
    """Log the table with its pictures, the pick and the report; a failure is one readable error."""
    try:
        import wandb

        settings = wandb.Settings(console="off", disable_git=True, disable_code=True)
        with wandb.init(
            project=PROJECT, job_type="eval", name=evaluation.title, dir=str(root), settings=settings
        ) as run:
            report = wandb.Html(str(root / REPORT_FILE), inject=False)
            run.log({"pictures": _samples_table(wandb, root, evaluation), "report": report})
            if pick and pick.arm:
                run.summary["pick"] = pick.arm.name
    except Exception as error:  # a remote service may fail in any way; the files are written already
        remedy = "the report is written; try again later"
        raise LorakitError(f"wandb: {first_line(error)}", where=str(root), remedy=remedy) from error


def _samples_table(wandb: Any, root: Path, evaluation: Evaluation) -> Any:
    """Every picture that is still there, with what it was made from and what it scored."""
    names = sorted({name for arm in evaluation.arms for name in arm.scores})
    by_id = {prompt.id: prompt for prompt in evaluation.prompts}
    table = wandb.Table(columns=[*_SAMPLE_COLUMNS, *names])
    for arm in evaluation.arms:
        for key, file in arm.files.items():
            prompt, path = by_id[key[0]], root / file
            picture = wandb.Image(str(path)) if path.is_file() else None
            about = [arm.name, arm.step, arm.strength, prompt.id, prompt.kind, key[1], prompt.prompt]
            table.add_data(*about, picture, *(arm.scores.get(name, {}).get(key) for name in names))
    return table
