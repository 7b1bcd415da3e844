"""Evaluations of folders: pictures of any generator, two arms against each other, an old one told anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.core.errors import ConfigError, DataError
from lorakit.data.prompts import Prompt, Subject, load_prompts
from lorakit.evaluation import sample_files, score_table
from lorakit.evaluation.evaluate_run import EvaluationResult
from lorakit.evaluation.judges import DEFAULT_JUDGES, JudgeOptions, load_folder_references, load_judges
from lorakit.evaluation.measure import VariantSamples, score_variants
from lorakit.evaluation.report import write
from lorakit.evaluation.report.page import comparison_page
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores
from lorakit.evaluation.select import select_checkpoint
from lorakit.training.run_folder import RunFolder

NO_SUBJECT = Subject()


@dataclass(frozen=True)
class FolderEvaluationOptions:
    """How to score a folder of pictures of any generator."""

    prompts: Path
    out: Path
    judges: JudgeOptions = DEFAULT_JUDGES
    pattern: str | None = None
    base: Path | None = None
    """The same prompts and seeds by the model without what is judged."""
    references: Path | None = None
    subject: Subject = NO_SUBJECT
    drift_budget: float | None = None
    quiet: bool = False


def evaluate_folder(folder: Path, request: FolderEvaluationOptions) -> EvaluationResult:
    """Score pictures against their prompts; with `base` and `references` as fully as a run's."""
    wanted = load_prompts(request.prompts, request.subject)
    found = sample_files.find_samples(folder, wanted, request.pattern)
    arms = [VariantSamples(folder.resolve().name, found)]
    if request.base:
        keys = {picture.key for picture in found}
        base = [p for p in sample_files.find_samples(request.base, wanted, request.pattern) if p.key in keys]
        arms.append(VariantSamples(BASE, base))
    judges = load_judges(request.judges)
    references = load_folder_references(request.references, request.out) if request.references else None
    evaluation = Evaluation(
        title=f"{folder.resolve().name}: scores",
        prompts=sample_files.prompts_with_seeds(found),
        arms=[],
        trigger=request.subject.trigger,
        settings={"drift budget": request.drift_budget},
    )
    if missing := len(wanted) - len(evaluation.prompts):
        evaluation.notes.append(f"{missing} of {len(wanted)} prompts have no picture.")
    score_variants(evaluation, arms, judges, references, root=request.out, quiet=request.quiet)
    chosen = select_checkpoint(evaluation) if request.base and references else None
    return EvaluationResult(evaluation, chosen, write.write_evaluation(request.out, evaluation, chosen))


def rebuild_evaluation_report(folder: Path, drift_budget: float | None = None) -> EvaluationResult:
    """The pick and the page again from scores.json, perhaps with another drift budget."""
    root, evaluation = score_table.load_evaluation(folder)
    if drift_budget is not None:
        evaluation.settings["drift budget"] = drift_budget
    chosen = select_checkpoint(evaluation) if evaluation.base and evaluation.tuned else None
    run = root.parent
    rows = RunFolder(run).metrics() if (run / "recipe.yaml").is_file() else []
    return EvaluationResult(
        evaluation, chosen, write.write_evaluation(root, evaluation, chosen, metrics=rows)
    )


def compare_evaluations(first: str, second: str, out: Path) -> EvaluationResult:
    """Two arms of evaluations, given as FOLDER or FOLDER:ARM, over the prompts and seeds that both have."""
    (root_a, a, arm_a), (root_b, b, arm_b) = _select_variant(first), _select_variant(second)
    names = [arm_a.name, arm_b.name]
    if names[0] == names[1]:
        names = [
            f"{name} of {Path(text).resolve().name}"
            for name, text in zip(names, (first, second), strict=True)
        ]
    _check_comparable(a, b)
    shared = sorted(arm_a.files.keys() & arm_b.files.keys())
    prompts = [_with_seeds(prompt, shared) for prompt in a.prompts if any(k[0] == prompt.id for k in shared)]
    texts = {prompt.id: prompt.score_text for prompt in b.prompts}
    if not prompts or any(texts[prompt.id] != prompt.score_text for prompt in prompts):
        raise DataError(
            "the two have no prompts and seeds in common",
            where=f"{first}, {second}",
            remedy="evaluate both with the same prompt file",
        )
    arms = [
        _relocated(arm, name, root, out)
        for arm, name, root in ((arm_a, names[0], root_a), (arm_b, names[1], root_b))
    ]
    evaluation = Evaluation(
        f"{names[1]} against {names[0]}", prompts, arms, a.trigger, a.eye, settings=a.settings
    )
    text = comparison_page(evaluation, arms[0], arms[1], out, versions=write.package_versions())
    return EvaluationResult(evaluation, None, write.write_comparison(out, evaluation, text))


def _select_variant(text: str) -> tuple[Path, Evaluation, VariantScores]:
    """An evaluation's folder and one arm: the one named, else the pick, else the only one."""
    path, name = Path(text), ""
    if not path.exists():
        head, colon, name = text.rpartition(":")
        path = Path(head) if colon else path
    root, evaluation = score_table.load_evaluation(path)
    if name:
        found = next((arm for arm in evaluation.arms if name in (arm.name, str(arm.step))), None)
    elif evaluation.base and evaluation.tuned:
        found = select_checkpoint(evaluation).arm or evaluation.tuned[-1]
    else:
        found = evaluation.arms[-1]
    if found is None:
        remedy = f"one of {', '.join(arm.name for arm in evaluation.arms)}"
        raise ConfigError(f"there is no arm {name!r}", where=text, remedy=remedy)
    return root, evaluation, found


def _check_comparable(a: Evaluation, b: Evaluation) -> None:
    for name in ("clip", "image model"):
        one, two = ({**(e.settings.get(name) or {}), "truncated": None} for e in (a, b))
        if differing := [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]:
            raise DataError(
                f"the two were scored by different settings of the {name}: {', '.join(sorted(differing))}",
                where=f"{a.title}, {b.title}",
                remedy="evaluate both with the same models",
            )


def _with_seeds(prompt: Prompt, shared: Sequence[score_table.SampleKey]) -> Prompt:
    return replace(prompt, seeds=tuple(seed for name, seed in shared if name == prompt.id))


def _relocated(arm: VariantScores, name: str, root: Path, out: Path) -> VariantScores:
    """The arm under another name, its paths relative to another folder."""
    files = {key: Path(os.path.relpath(root / file, out)).as_posix() for key, file in arm.files.items()}
    return replace(arm, name=name, files=files)
