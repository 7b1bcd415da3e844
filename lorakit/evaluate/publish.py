"""An evaluation as a table in Weights & Biases, one row a picture."""

from __future__ import annotations

from pathlib import Path

from lorakit.errors import LorakitError
from lorakit.evaluate.pick import Pick
from lorakit.evaluate.results import REPORT
from lorakit.evaluate.table import Evaluation

PROJECT = "lorakit"


def to_wandb(root: Path, evaluation: Evaluation, pick: Pick | None) -> None:
    """Log the table with its pictures, the pick and the report; a failure is one readable error."""
    import wandb

    names = sorted({name for arm in evaluation.arms for name in arm.scores})
    by_id = {prompt.id: prompt for prompt in evaluation.prompts}
    table = wandb.Table(
        columns=["arm", "step", "strength", "prompt_id", "kind", "seed", "prompt", "picture", *names]
    )
    for arm in evaluation.arms:
        for key, file in arm.files.items():
            prompt = by_id[key[0]]
            scores = [arm.scores.get(name, {}).get(key) for name in names]
            picture = wandb.Image(str(root / file))
            about = [arm.name, arm.step, arm.strength, prompt.id, prompt.kind, key[1], prompt.prompt]
            table.add_data(*about, picture, *scores)
    try:
        settings = wandb.Settings(console="off", disable_git=True, disable_code=True)
        with wandb.init(
            project=PROJECT, job_type="eval", name=root.parent.name, dir=str(root), settings=settings
        ) as run:
            run.log({"pictures": table, "report": wandb.Html(str(root / REPORT), inject=False)})
            if pick and pick.arm:
                run.summary["pick"] = pick.arm.name
    except Exception as error:  # a remote service may fail in any way; the files are written already
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LorakitError(
            f"wandb: {reason}", where=str(root), remedy="the report is written; try again later"
        ) from error
