"""Evaluations of folders: pictures of any generator, two arms against each other, an old one told anew."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.core.errors import ConfigError, DataError
from lorakit.data.prompts import Prompt, Subject, load
from lorakit.evaluation import sample_files, score_table
from lorakit.evaluation.evaluate_run import Result
from lorakit.evaluation.judges import DEFAULTS, Wanted, folder_references, open_judges
from lorakit.evaluation.measure import Taken, measure
from lorakit.evaluation.report import write
from lorakit.evaluation.report.page import comparison
from lorakit.evaluation.score_table import BASE, Arm, Evaluation
from lorakit.evaluation.select import pick
from lorakit.training.run_folder import RunFolder

ANYTHING = Subject()


@dataclass(frozen=True)
class Folders:
    """How to score a folder of pictures of any generator."""

    prompts: Path
    out: Path
    judges: Wanted = DEFAULTS
    pattern: str | None = None
    base: Path | None = None
    """The same prompts and seeds by the model without what is judged."""
    references: Path | None = None
    subject: Subject = ANYTHING
    drift_budget: float | None = None
    quiet: bool = False


def score_folder(folder: Path, request: Folders) -> Result:
    """Score pictures against their prompts; with `base` and `references` as fully as a run's."""
    wanted = load(request.prompts, request.subject)
    found = sample_files.find(folder, wanted, request.pattern)
    arms = [Taken(folder.resolve().name, found)]
    if request.base:
        keys = {picture.key for picture in found}
        base = [p for p in sample_files.find(request.base, wanted, request.pattern) if p.key in keys]
        arms.append(Taken(BASE, base))
    judges = open_judges(request.judges)
    references = folder_references(request.references, request.out) if request.references else None
    evaluation = Evaluation(
        title=f"{folder.resolve().name}: scores",
        prompts=sample_files.asked(found),
        arms=[],
        trigger=request.subject.trigger,
        settings={"drift budget": request.drift_budget},
    )
    if missing := len(wanted) - len(evaluation.prompts):
        evaluation.notes.append(f"{missing} of {len(wanted)} prompts have no picture.")
    measure(evaluation, arms, judges, references, root=request.out, quiet=request.quiet)
    chosen = pick(evaluation) if request.base and references else None
    return Result(evaluation, chosen, write.write(request.out, evaluation, chosen))


def rewrite(folder: Path, drift_budget: float | None = None) -> Result:
    """The pick and the page again from scores.json, perhaps with another drift budget."""
    root, evaluation = score_table.find(folder)
    if drift_budget is not None:
        evaluation.settings["drift budget"] = drift_budget
    chosen = pick(evaluation) if evaluation.base and evaluation.tuned else None
    run = root.parent
    rows = RunFolder(run).metrics() if (run / "recipe.yaml").is_file() else []
    return Result(evaluation, chosen, write.write(root, evaluation, chosen, metrics=rows))


def compare(first: str, second: str, out: Path) -> Result:
    """Two arms of evaluations, given as FOLDER or FOLDER:ARM, over the prompts and seeds that both have."""
    (root_a, a, arm_a), (root_b, b, arm_b) = _chosen(first), _chosen(second)
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
        _moved(arm, name, root, out)
        for arm, name, root in ((arm_a, names[0], root_a), (arm_b, names[1], root_b))
    ]
    evaluation = Evaluation(
        f"{names[1]} against {names[0]}", prompts, arms, a.trigger, a.eye, settings=a.settings
    )
    text = comparison(evaluation, arms[0], arms[1], out, versions=write.versions())
    return Result(evaluation, None, write.write_comparison(out, evaluation, text))


def _chosen(text: str) -> tuple[Path, Evaluation, Arm]:
    """An evaluation's folder and one arm: the one named, else the pick, else the only one."""
    path, name = Path(text), ""
    if not path.exists():
        head, colon, name = text.rpartition(":")
        path = Path(head) if colon else path
    root, evaluation = score_table.find(path)
    if name:
        found = next((arm for arm in evaluation.arms if name in (arm.name, str(arm.step))), None)
    elif evaluation.base and evaluation.tuned:
        found = pick(evaluation).arm or evaluation.tuned[-1]
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


def _with_seeds(prompt: Prompt, shared: Sequence[score_table.Key]) -> Prompt:
    return replace(prompt, seeds=tuple(seed for name, seed in shared if name == prompt.id))


def _moved(arm: Arm, name: str, root: Path, out: Path) -> Arm:
    """The arm under another name, its paths relative to another folder."""
    files = {key: Path(os.path.relpath(root / file, out)).as_posix() for key, file in arm.files.items()}
    return replace(arm, name=name, files=files)
