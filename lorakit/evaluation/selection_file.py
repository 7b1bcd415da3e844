"""RUN/eval/selection.json: the checkpoint to use and its strength, for export, sampling and Python."""

from __future__ import annotations

from pathlib import Path

from lorakit.adapters.selection_record import EVALUATION_FOLDER, SELECTION_FILE, SelectionRecord
from lorakit.core import checksums, platform, storage
from lorakit.data.prompts import prompt_to_row
from lorakit.evaluation.report.published_scores import published_scores
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.models import base_model
from lorakit.training.run import Checkpoint, Run


def chosen_variant(selection: Selection | None) -> VariantScores | None:
    """Return the variant to use: the recommended one, else the best with its alarms; never a guest."""
    if selection is None:
        return None
    return selection.variant or selection.best


def is_recommended(selection: Selection) -> bool:
    """Return True if the evaluation recommends the chosen variant without reservation."""
    return selection.variant is not None and not selection.despite_alarms


def write_selection(run: Path, evaluation: Evaluation, selection: Selection | None, verdict: str) -> Path:
    """Write the selection of a run's evaluation; equal selections give equal bytes and keep the file."""
    file = run / SELECTION_FILE
    text = storage.dump_json(_record(evaluation, selection, verdict).to_json())
    if file.is_file() and file.read_bytes() == text.encode():
        return file
    return storage.write_text(file, text)


def selected_checkpoint(run: Path, selection: Selection | None) -> Checkpoint | None:
    """Return the checkpoint of the chosen variant; None if nothing was selected or its file is gone."""
    variant = chosen_variant(selection)
    if variant is None or variant.step is None or variant.origin is None:
        return None
    file = run / variant.origin.file
    strength = 1.0 if variant.strength is None else variant.strength
    return Checkpoint(run, variant.step, file, strength) if file.is_file() else None


def next_commands(run: Path, prompts: Path | None) -> list[str]:
    """Return the commands that use the selected checkpoint: export it, and sample with it."""
    recipe = Run(run).recipe
    folder = platform.quote_argument(str(run))
    base = platform.quote_argument(base_model.absolute_spec(recipe.base))
    file = prompts or recipe.samples.prompts
    text = platform.quote_argument(str(file)) if file else "PROMPTS"
    return [
        f"lorakit export {folder} --for {recipe.export[0] if len(recipe.export) == 1 else 'all'}",
        f"lorakit sample {base} --adapter {folder} --prompts {text}",
    ]


def _record(evaluation: Evaluation, selection: Selection | None, verdict: str) -> SelectionRecord:
    variant = chosen_variant(selection)
    candidates = selection.candidates if selection else []
    alarms = next((one.alarms for one in candidates if one.variant is variant), [])
    return SelectionRecord(
        variant=variant.name if variant else None,
        step=variant.step if variant else None,
        strength=variant.strength if variant else None,
        file=variant.origin.file if variant and variant.origin else None,
        sha256=variant.origin.sha256 if variant and variant.origin else None,
        recommended=selection is not None and is_recommended(selection),
        reason=selection.reason if selection else "there is nothing to select from",
        verdict=verdict,
        last_step=evaluation.last_step or 0,
        prompts_sha256=prompts_hash(evaluation),
        num_prompts=len(evaluation.prompts),
        alarms=[{"title": alarm.title, **alarm.to_json()} for alarm in alarms],
        scores=published_scores(evaluation, selection, variant) if selection and variant else [],
        images=_image_folders(evaluation, variant) if variant else {},
    )


def _image_folders(evaluation: Evaluation, variant: VariantScores) -> dict[str, str]:
    """Return the folders of the images of the base model and of a variant, relative to the run's folder."""
    folders = {}
    for name, one in (("base", evaluation.base), ("adapter", variant)):
        parents = {Path(file).parent.as_posix() for file in one.files.values()} if one else set()
        if len(parents) == 1:
            folders[name] = f"{EVALUATION_FOLDER}/{parents.pop()}"
    return folders


def prompts_hash(evaluation: Evaluation) -> str:
    """Return the hash of the prompts and seeds that an evaluation sampled."""
    rows = [{k: v for k, v in prompt_to_row(p).items() if k != "image"} for p in evaluation.prompts]
    return checksums.sha256_bytes(storage.dump_json(rows).encode())
