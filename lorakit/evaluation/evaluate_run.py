"""The evaluation of a run: every checkpoint and strength, from the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit import adapters
from lorakit.config import recipe
from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, first_line
from lorakit.data.prompts import Prompt, Subject, load_prompts
from lorakit.evaluation import checkpoints
from lorakit.evaluation.judges import (
    DEFAULT_JUDGES,
    JudgeOptions,
    load_folder_references,
    load_judges,
    load_run_references,
)
from lorakit.evaluation.measure import ReferenceImages, VariantSamples, score_variants
from lorakit.evaluation.report import write
from lorakit.evaluation.score_table import BASE, Evaluation
from lorakit.evaluation.select import Selection, select_checkpoint
from lorakit.evaluation.validation_loss import ValidationLoss
from lorakit.evaluation.word_choice import prompt_alternatives
from lorakit.reports import Html
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline, resolve_quantization
from lorakit.training.run_folder import RunFolder, run_recipe_file

EVALUATION_FOLDER, IMAGES = "eval", "images"


@dataclass(frozen=True)
class RunEvaluationOptions:
    """How to evaluate a run; None means the run's own prompts, data and sampling."""

    prompts: Path | None = None
    checkpoints: str = "all"
    strengths: tuple[float, ...] = (1.0,)
    judges: JudgeOptions = DEFAULT_JUDGES
    references: Path | None = None
    drift_budget: float | None = None
    options: SamplingOptions | None = None
    words: Sequence[str] = ()
    """Alternatives among which CLIP picks the one of each prompt's `score_text`."""
    title: str | None = None
    validate: bool = True
    extra: Sequence[Html] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation with its pick and the page that shows both."""

    evaluation: Evaluation
    pick: Selection | None
    report: Path


@dataclass
class _RunPlan:
    """What is known before the base is loaded."""

    made: Recipe
    prompts: list[Prompt]
    arms: list[checkpoints.CheckpointVariant]
    notes: list[str] = field(default_factory=list)


def evaluate_run(run: Path, request: RunEvaluationOptions) -> EvaluationResult:
    """Sample the base and every checkpoint and strength with the same noise, score, judge, report.

    Everything lies in RUN/eval; pictures and features that are there and still right are not made again.
    """
    plan = _plan(run, request)
    root = run / EVALUATION_FOLDER
    judges = load_judges(request.judges, plan.made.base)
    references = _references(plan, request, root)
    options = request.options or SamplingOptions(plan.made.samples.steps, plan.made.samples.guidance)
    bits = resolve_quantization(options, plan.made.quantized)
    painter = SamplingPipeline(plan.made.base, plan.arms[0].file, quantize=bits)
    evaluation = Evaluation(
        title=request.title or f"{run.resolve().name}: which checkpoint",
        prompts=plan.prompts,
        arms=[],
        trigger=plan.made.trigger,
        settings=_settings(painter, options, request),
        facts=_run_facts(run, plan, painter),
        notes=plan.notes,
    )
    taken = _sample_variants(run, plan, painter, options, request)
    alternatives = prompt_alternatives(plan.prompts, list(request.words)) if request.words else None
    score_variants(
        evaluation, taken, judges, references, root=root, alternatives=alternatives, quiet=options.quiet
    )
    chosen = select_checkpoint(evaluation)
    rows = RunFolder(run).metrics()
    page = write.write_evaluation(root, evaluation, chosen, metrics=rows, extra=request.extra)
    return EvaluationResult(evaluation, chosen, page)


def _plan(run: Path, request: RunEvaluationOptions) -> _RunPlan:
    made = recipe.load_recipe(run_recipe_file(run))
    file = request.prompts or made.samples.prompts
    if file is None:
        remedy = "give --prompts FILE; `lorakit eval prompts` makes one"
        raise ConfigError("the run has no prompts", where=str(run), remedy=remedy)
    prompts = load_prompts(file, Subject(made.trigger, made.class_noun))
    arms, problems = checkpoints.list_variants(run, request.checkpoints, request.strengths)
    return _RunPlan(made, prompts, arms, problems)


def _references(plan: _RunPlan, request: RunEvaluationOptions, root: Path) -> ReferenceImages | None:
    """What to compare with; a dataset that has moved costs the scores that need it, and a note says so."""
    if request.references:
        return load_folder_references(request.references, root)
    try:
        return load_run_references(plan.made, root)
    except (DataError, OSError) as error:
        reason = first_line(error)
        plan.notes.append(f"No fidelity and no copy alarm: {reason} (give --references DIR).")
        return None


def _sample_variants(
    run: Path,
    plan: _RunPlan,
    painter: SamplingPipeline,
    options: SamplingOptions,
    request: RunEvaluationOptions,
) -> list[VariantSamples]:
    """The pictures of the base and of all arms, and the losses of held-out images."""
    studio = checkpoints.CheckpointSampler(painter, plan.prompts, options, run / EVALUATION_FOLDER / IMAGES)
    held = _validation_loss(plan, painter) if request.validate else None
    taken = [VariantSamples(BASE, studio.base())]
    if held:
        with painter.without_adapter():
            taken[0].losses = held.losses()
    for arm in plan.arms:
        drawn = studio.arm(arm)
        losses = held.losses() if held else {}
        taken.append(VariantSamples(arm.name, drawn, arm.step, arm.strength, losses))
    return taken


def _validation_loss(plan: _RunPlan, painter: SamplingPipeline) -> ValidationLoss | None:
    if not plan.made.validate_.fraction:
        return None
    try:
        held = ValidationLoss(plan.made, painter)
    except (DataError, ConfigError) as error:
        plan.notes.append(f"No validation loss: {first_line(error)}.")
        return None
    return None if held.empty else held


def _settings(
    painter: SamplingPipeline, options: SamplingOptions, request: RunEvaluationOptions
) -> dict[str, Any]:
    used = painter.settings(options)
    guide = options.guide
    return {
        "size": f"{used.width} × {used.height}",
        "sampler": used.sampler or type(painter.pipe.scheduler).__name__,
        "sampler steps": used.steps,
        "base weights": painter.quantize or "whole",
        "guidance": used.guidance if used.guidance is not None else "the pipeline's own",
        "control": f"{guide.kind} at {guide.scale:g}" if guide else "none",
        "drift budget": request.drift_budget,
    }


def _run_facts(run: Path, plan: _RunPlan, painter: SamplingPipeline) -> list[tuple[str, str]]:
    made, optimizer = plan.made, plan.made.optimizer
    modules, numbers = adapters.count_trainable(*painter.networks.values())
    record = storage.read_json(run / "run.json")
    shape = f"rank {made.adapter.rank}, alpha {made.adapter.alpha:g}, {modules} modules, {numbers:,} numbers"
    how = f"{made.train.steps} steps of {made.effective_batch}, {optimizer.name}, lr {optimizer.lr:g}"
    return [
        ("Base", f"{Path(made.base).name} ({painter.family.title})"),
        ("Adapter", shape),
        ("Training", how),
        ("Data", f"{record.get('images', '?')} images at resolution {made.resolution}"),
        ("File", f"{plan.arms[-1].file.stat().st_size / 2**20:.1f} MiB"),
    ]
