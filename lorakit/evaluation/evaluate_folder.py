"""Evaluation of image folders, comparison of two evaluations, and reports written again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.adapters.selection_record import EVALUATION_FOLDER
from lorakit.adapters.sources import LAST
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.progress import print_line
from lorakit.data.prompts import Prompt, load_prompts
from lorakit.data.subjects import Subject, subject_triggers
from lorakit.evaluation.judge_changes import check_same_judges, without_changed_metrics
from lorakit.evaluation.judges import DEFAULT_JUDGES, JudgeOptions, load_folder_references, load_judges
from lorakit.evaluation.measure import score_variants
from lorakit.evaluation.report import write
from lorakit.evaluation.report.verdict import selection_headline
from lorakit.evaluation.result import EvaluationResult
from lorakit.evaluation.sample_files import SampleFile, SampleKey, find_samples, prompts_with_seeds
from lorakit.evaluation.score_table import (
    BASE,
    Evaluation,
    VariantScores,
    find_evaluation_folder,
    load_evaluation,
)
from lorakit.evaluation.scoring_inputs import VariantSamples
from lorakit.evaluation.select import Selection
from lorakit.evaluation.selection_file import (
    chosen_variant,
    next_commands,
    selected_checkpoint,
    write_selection,
)
from lorakit.evaluation.vote.settle import select_with_votes
from lorakit.training.run_folder import RunFolder, is_run_folder

NO_SUBJECT = Subject()


def evaluate_folder(
    folder: str | Path,
    *,
    prompts: str | Path | None = None,
    out: str | Path,
    judges: JudgeOptions = DEFAULT_JUDGES,
    pattern: str | None = None,
    base_images: str | Path | None = None,
    references: str | Path | None = None,
    subject: Subject = NO_SUBJECT,
    max_drift: float | None = None,
    quiet: bool = False,
) -> EvaluationResult:
    """Score a folder of images of any generator against their prompts and write the report to `out`.

    The prompts are those of a prompt file; without one, those that the images carry (`find_samples`). Samples
    of a training, whose names have steps, are one variant a step.

    `base_images` is a folder with images of the base model for the same prompts and seeds. With it and
    `references` all scores and alarms of a run's evaluation are available. `pattern` describes the file names
    (`find_samples`); `max_drift` is the drift (1 - cosine) tolerated on prompts without the subject.
    """
    folder, out = Path(folder), Path(out)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        print_line(text)

    prompt_list = load_prompts(prompts, [subject]) if prompts else []
    samples = find_samples(folder, prompt_list, pattern, subject=subject, log=note)
    prompt_list = prompt_list or prompts_with_seeds(samples)
    variants = _variants_by_step(samples, folder.resolve().name, note)
    samples = [sample for variant in variants for sample in variant.samples]
    if base_images:
        keys = {sample.key for sample in samples}
        base_samples = find_samples(base_images, prompt_list, pattern, subject=subject, log=note)
        variants.append(VariantSamples(BASE, [sample for sample in base_samples if sample.key in keys]))
    judge_models = load_judges(judges)
    reference_images = (
        load_folder_references(Path(references), out, subject.class_noun) if references else None
    )
    evaluation = Evaluation(
        title=f"{folder.resolve().name}: scores",
        prompts=prompts_with_seeds(samples),
        variants=[],
        triggers=subject_triggers([subject]),
        settings={"max_drift": max_drift},
        notes=notes,
    )
    if missing := len(prompt_list) - len(evaluation.prompts):
        evaluation.notes.append(f"{missing} of {len(prompt_list)} prompts have no image.")
    score_variants(evaluation, variants, judge_models, reference_images, root=out, quiet=quiet)
    selection = select_with_votes(out, evaluation) if base_images and references else None
    return EvaluationResult(evaluation, selection, write.write_evaluation(out, evaluation, selection))


def _variants_by_step(
    samples: Sequence[SampleFile], name: str, note: Callable[[str], None]
) -> list[VariantSamples]:
    """Return the samples of each training step as a variant; those without steps are one variant."""
    by_step: dict[str | None, list[SampleFile]] = {}
    for sample in samples:
        by_step.setdefault(sample.step, []).append(sample)
    if len(by_step) == 1:
        return [VariantSamples(name, list(samples))]
    keys = {step: {sample.key for sample in group} for step, group in by_step.items()}
    complete = set().union(*keys.values())
    partial = sorted(_step_name(step) for step, own in keys.items() if own != complete)
    if len(partial) == len(by_step):
        complete = set.intersection(*keys.values())
        note(f"Steps have different prompts and seeds: the {len(complete)} images that all have are scored.")
        by_step = {step: [s for s in group if s.key in complete] for step, group in by_step.items()}
    elif partial:
        note(f"Steps without all images are not scored: {', '.join(partial)}.")
        by_step = {step: group for step, group in by_step.items() if keys[step] == complete}
    if not complete:
        raise DataError(
            "the steps have no prompt and seed in common",
            where=name,
            remedy="score the images of each step in a folder of its own",
        )
    steps = sorted(by_step, key=lambda step: (step or "").lstrip("e").zfill(12))
    return [VariantSamples(_step_name(step), by_step[step], _step_number(step)) for step in steps]


def _step_name(step: str | None) -> str:
    number = _step_number(step)
    if number is None:
        return "without a step"
    return f"epoch {number}" if step and step.startswith("e") else f"step {number}"


def _step_number(step: str | None) -> int | None:
    return int(step.lstrip("e")) if step else None


def rebuild_evaluation_report(folder: str | Path, max_drift: float | None = None) -> EvaluationResult:
    """Select again and write the report again from scores.json, possibly with another `max_drift`."""
    root = find_evaluation_folder(folder)
    evaluation = load_evaluation(root)
    if max_drift is not None:
        evaluation.settings["max_drift"] = max_drift
    selection = None
    if evaluation.base and evaluation.adapter_variants:
        selection = select_with_votes(root, evaluation)
    run = root.parent
    if not is_run_evaluation(root):
        return EvaluationResult(evaluation, selection, write.write_evaluation(root, evaluation, selection))
    report = write.write_evaluation(root, evaluation, selection, metrics=RunFolder(run).metrics())
    update_selection(root, evaluation, selection)
    best = selected_checkpoint(run, selection)
    return EvaluationResult(evaluation, selection, report, best, next_commands(run, None))


def is_run_evaluation(root: Path) -> bool:
    """Return True if a folder holds the evaluation of the run in its parent folder."""
    return root.name == EVALUATION_FOLDER and is_run_folder(root.parent)


def update_selection(root: Path, evaluation: Evaluation, selection: Selection | None) -> None:
    """Write the selection of a run's evaluation again; do nothing for images of another generator."""
    if is_run_evaluation(root):
        verdict = selection_headline(evaluation, selection).text
        write_selection(root.parent, evaluation, selection, verdict)


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: a variant of an evaluation in a folder."""

    text: str
    folder: Path
    evaluation: Evaluation
    variant: VariantScores


def compare_evaluations(first: str, second: str, out: str | Path) -> EvaluationResult:
    """Compare two variants, each FOLDER or FOLDER@VARIANT, on the prompts and seeds that both have.

    VARIANT is a step, STEP:STRENGTH, `last`, or a name of the report. Without it, it is the selected one.

    Raises DataError if they have none in common or were scored by different models.
    """
    out = Path(out)
    sides = [_find_variant(first), _find_variant(second)]
    names = [side.variant.name for side in sides]
    if names[0] == names[1]:
        names = [f"{side.variant.name} of {Path(side.text).resolve().name}" for side in sides]
    check_same_judges(sides[0].evaluation, sides[1].evaluation)
    keys = sorted(sides[0].variant.files.keys() & sides[1].variant.files.keys())
    ids = {key.prompt_id for key in keys}
    prompts = [_with_seeds(prompt, keys) for prompt in sides[0].evaluation.prompts if prompt.id in ids]
    texts = {prompt.id: prompt.score_text for prompt in sides[1].evaluation.prompts}
    if not prompts or any(texts[prompt.id] != prompt.score_text for prompt in prompts):
        raise DataError(
            "the two have no prompts and seeds in common",
            where=f"{first}, {second}",
            remedy="evaluate both with the same prompt file",
        )
    relocated = [_relocated(side, name, out) for side, name in zip(sides, names, strict=True)]
    variants, notes = without_changed_metrics(sides[0].evaluation, sides[1].evaluation, relocated)
    evaluation = Evaluation(
        f"{names[1]} compared with {names[0]}",
        prompts,
        variants,
        sides[0].evaluation.triggers,
        sides[0].evaluation.fidelity_metric,
        settings=sides[0].evaluation.settings,
        notes=notes,
    )
    return EvaluationResult(evaluation, None, write.write_comparison(out, evaluation))


def _find_variant(text: str) -> _Side:
    """Find the named variant, else the selected one, else the last."""
    path, name = _split_variant(text)
    folder = find_evaluation_folder(path)
    evaluation = load_evaluation(folder)
    if name:
        return _Side(text, folder, evaluation, _variant_named(evaluation, name, text))
    variant = evaluation.variants[-1]
    if evaluation.base and evaluation.adapter_variants:
        variant = chosen_variant(select_with_votes(folder, evaluation)) or evaluation.adapter_variants[-1]
    return _Side(text, folder, evaluation, variant)


def _split_variant(text: str) -> tuple[Path, str]:
    """Split FOLDER@VARIANT; both parts may contain another @."""
    ends = [len(text), *(position for position, letter in enumerate(text) if letter == "@")]
    for end in sorted(ends, reverse=True):
        if end and Path(text[:end]).exists():
            return Path(text[:end]), text[end + 1 :]
    return Path(text), ""


def _variant_named(evaluation: Evaluation, name: str, where: str) -> VariantScores:
    """Return the variant by its name, STEP or STEP:STRENGTH; `last` is the last checkpoint."""
    candidates = evaluation.adapter_variants
    if name == LAST and candidates:
        return candidates[-1]
    step, _, strength = name.partition(":")
    matches = [variant for variant in evaluation.variants if variant.name == name] or [
        variant
        for variant in evaluation.variants
        if str(variant.step) == step and (not strength or f"{variant.strength or 1:g}" == strength)
    ]
    if not matches:
        remedy = f"one of {', '.join(variant.name for variant in evaluation.variants)}"
        raise ConfigError(f"there is no variant {name!r}", where=where, remedy=remedy)
    return next((variant for variant in matches if variant.strength in (None, 1)), matches[-1])


def _with_seeds(prompt: Prompt, keys: Sequence[SampleKey]) -> Prompt:
    return replace(prompt, seeds=tuple(key.seed for key in keys if key.prompt_id == prompt.id))


def _relocated(side: _Side, name: str, out: Path) -> VariantScores:
    """Return the variant under another name, with its paths relative to `out`."""
    files = {
        key: Path(os.path.relpath(side.folder / file, out)).as_posix()
        for key, file in side.variant.files.items()
    }
    return replace(side.variant, name=name, files=files)
