"""The evaluation of a run: every checkpoint at every strength, with the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit import adapters
from lorakit.config.recipe import Recipe, change_recipe, load_recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, first_line
from lorakit.data.prompts import Prompt, concept_subjects, load_prompts
from lorakit.evaluation.checkpoints import CheckpointSampler, CheckpointVariant, list_variants
from lorakit.evaluation.judges import (
    DEFAULT_JUDGES,
    JudgeOptions,
    load_folder_references,
    load_judges,
    load_run_references,
)
from lorakit.evaluation.measure import ReferenceImages, VariantSamples, score_variants
from lorakit.evaluation.report import write
from lorakit.evaluation.result import EvaluationResult
from lorakit.evaluation.score_table import BASE, Evaluation
from lorakit.evaluation.select import Selection, select_checkpoint
from lorakit.evaluation.validation_loss import RunValidation
from lorakit.evaluation.word_choice import prompt_alternatives
from lorakit.models import device as devices
from lorakit.reports import Html
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline, resolve_quantization
from lorakit.training.run import Checkpoint
from lorakit.training.run_folder import RunFolder, run_recipe_file

EVALUATION_FOLDER, IMAGES_FOLDER = "eval", "images"


@dataclass
class _RunPlan:
    """The run's recipe, prompts and variants, and notes about anything that cannot be measured."""

    recipe: Recipe
    prompts: list[Prompt]
    variants: list[CheckpointVariant]
    notes: list[str] = field(default_factory=list)


def evaluate_run(
    run: str | Path,
    *,
    prompts: str | Path | None = None,
    checkpoints: str | Sequence[int] = "all",
    strengths: Sequence[float] = (1.0,),
    judges: JudgeOptions = DEFAULT_JUDGES,
    references: str | Path | None = None,
    max_drift: float | None = None,
    sampling: SamplingOptions | None = None,
    alternative_words: Sequence[str] = (),
    validation_loss: bool = True,
    title: str | None = None,
    extra_sections: Sequence[Html] = (),
) -> EvaluationResult:
    """Sample and score the base model and the checkpoints of a run, and select one.

    Writes report.html, scores.json, scores.csv and the images to RUN/eval. Images and scores that are there
    and still valid are reused.

    Args:
        run: the run's folder.
        prompts: a prompt file; None uses the prompts of the run's recipe.
        checkpoints: "all", "last", steps such as "200,400", or a list of steps.
        strengths: strengths of the adapter to evaluate each checkpoint at.
        judges: the models and metrics that score.
        references: a folder of reference images; None uses the run's training images of the subject.
        max_drift: drift (1 - cosine) tolerated on prompts without the subject; None calibrates it.
        sampling: None uses the sampling settings of the run's recipe.
        alternative_words: words from which CLIP chooses the one in each prompt's `score_text`.
        validation_loss: measure the loss of held-out images too, if the run has some.
        title: heading of the report.
        extra_sections: further sections of the report.

    Raises ConfigError if the run has no prompts or no adapter, or a model is missing.
    """
    run, root = Path(run), Path(run) / EVALUATION_FOLDER
    plan = _plan_evaluation(run, prompts, checkpoints, strengths)
    recipe = plan.recipe
    judge_models = load_judges(judges, recipe.base)
    reference_images = _load_references(plan, references, root)
    options = sampling or SamplingOptions(recipe.samples.num_inference_steps, recipe.samples.guidance_scale)
    pipeline = load_run_pipeline(recipe, plan.variants[0].file, options)
    evaluation = _empty_evaluation(run, plan, pipeline, options, title)
    evaluation.settings |= {"max_drift": max_drift}
    samples = _sample_variants(plan, pipeline, options, root / IMAGES_FOLDER, validation_loss)
    alternatives = prompt_alternatives(plan.prompts, alternative_words) if alternative_words else None
    score_variants(
        evaluation,
        samples,
        judge_models,
        reference_images,
        root=root,
        alternatives=alternatives,
        quiet=options.quiet,
    )
    selection = select_checkpoint(evaluation)
    metrics = RunFolder(run).metrics()
    report = write.write_evaluation(root, evaluation, selection, metrics=metrics, extra=extra_sections)
    return EvaluationResult(evaluation, selection, report, find_selected_checkpoint(run, selection))


def _empty_evaluation(
    run: Path, plan: _RunPlan, pipeline: SamplingPipeline, options: SamplingOptions, title: str | None
) -> Evaluation:
    plan.notes += pipeline.notes
    return Evaluation(
        title=title or f"{run.resolve().name}: checkpoint selection",
        prompts=plan.prompts,
        variants=[],
        triggers=plan.recipe.triggers,
        settings=_sampling_settings(pipeline, options),
        details=_run_details(run, plan, pipeline),
        notes=plan.notes,
    )


def load_run_pipeline(recipe: Recipe, adapter_file: Path, options: SamplingOptions) -> SamplingPipeline:
    """Load the base model in the precision of the run, so that the validation loss equals the training's."""
    device, precision = devices.default_device(), recipe.train.precision
    return SamplingPipeline(
        recipe.base,
        adapter_file,
        quantize=resolve_quantization(options, recipe.quantized),
        device=device,
        dtype=devices.weight_dtype(device, precision),
        compute_dtype=devices.compute_dtype(precision),
    )


def find_selected_checkpoint(run: Path, selection: Selection | None) -> Checkpoint | None:
    """Return the checkpoint of the selected variant of a run; None if nothing is selected."""
    variant = selection.variant if selection else None
    if variant is None or variant.step is None:
        return None
    strength = 1.0 if variant.strength is None else variant.strength
    (checkpoint,) = list_variants(run, [variant.step], [strength]).variants
    return Checkpoint(run, checkpoint.step, checkpoint.file, checkpoint.strength)


def _plan_evaluation(
    run: Path,
    prompts: str | Path | None,
    checkpoints: str | Sequence[int],
    strengths: Sequence[float],
) -> _RunPlan:
    """Check everything that can be checked before the base model is loaded."""
    recipe = load_recipe(run_recipe_file(run))
    prompt_file = prompts or recipe.samples.prompts
    if prompt_file is None:
        remedy = "use --prompts FILE; `lorakit eval prompts` creates such a file"
        raise ConfigError("the run has no prompts", where=str(run), remedy=remedy)
    prompt_list = load_prompts(prompt_file, concept_subjects(recipe.concepts))
    listed = list_variants(run, checkpoints, strengths)
    notes, trained = list(listed.notes), recipe.train.precision
    precision = devices.nearest_precision(devices.default_device(), trained)
    if precision != trained:
        recipe = change_recipe(recipe, [f"train.precision={precision}"])
        notes.append(f"The run was trained in {trained}, which this device lacks; measured in {precision}.")
    return _RunPlan(recipe, prompt_list, listed.variants, notes)


def _load_references(plan: _RunPlan, folder: str | Path | None, root: Path) -> ReferenceImages | None:
    """Load the reference images; without the run's dataset only the scores that need them are missing."""
    if folder:
        return load_folder_references(Path(folder), root)
    try:
        return load_run_references(plan.recipe, root)
    except (DataError, OSError) as error:
        reason = first_line(error)
        plan.notes.append(f"Fidelity and copies are not measured: {reason} (use --references DIR).")
        return None


def _sample_variants(
    plan: _RunPlan,
    pipeline: SamplingPipeline,
    options: SamplingOptions,
    images_folder: Path,
    with_validation_loss: bool,
) -> list[VariantSamples]:
    """Sample the base model and all variants, and measure their losses on held-out images."""
    sampler = CheckpointSampler(pipeline, plan.prompts, options, images_folder)
    validation = _load_validation_loss(plan, pipeline) if with_validation_loss else None
    base = VariantSamples(BASE, sampler.sample_base())
    if validation:
        with pipeline.adapter_disabled():
            base.losses = validation.image_losses()
    samples = [base]
    for variant in plan.variants:
        images = sampler.sample_variant(variant)
        losses = validation.image_losses() if validation else {}
        samples.append(VariantSamples(variant.name, images, variant.step, variant.strength, losses))
    return samples


def _load_validation_loss(plan: _RunPlan, pipeline: SamplingPipeline) -> RunValidation | None:
    if not plan.recipe.validate_.enabled:
        return None
    try:
        validation = RunValidation(plan.recipe, pipeline)
    except (DataError, ConfigError) as error:
        plan.notes.append(f"The validation loss is not measured: {first_line(error)}.")
        return None
    return None if validation.is_empty else validation


def _sampling_settings(pipeline: SamplingPipeline, options: SamplingOptions) -> dict[str, Any]:
    settings = pipeline.settings(options)
    control = options.control
    return {
        "width": settings.width,
        "height": settings.height,
        "sampler": settings.sampler or type(pipeline.pipe.scheduler).__name__,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "quantize": pipeline.quantize,
        "image_guidance": {"type": control.type, "scale": control.scale} if control else None,
    }


def _run_details(run: Path, plan: _RunPlan, pipeline: SamplingPipeline) -> list[tuple[str, str]]:
    """Rows of the report about the run: base model, adapter, training, data and file size."""
    recipe, optimizer = plan.recipe, plan.recipe.optimizer
    size = adapters.count_trainable(*pipeline.networks.values())
    record = storage.read_json(run / "run.json")
    rank = f"rank {recipe.adapter.rank}, alpha {recipe.adapter.alpha:g}"
    steps = f"{recipe.train.steps} steps of {recipe.effective_batch} images"
    return [
        ("Base model", f"{Path(recipe.base).name} ({pipeline.family.title})"),
        ("Adapter", f"{rank}, {size.num_modules} modules, {size.num_parameters:,} parameters"),
        ("Training", f"{steps}, {optimizer.name}, learning rate {optimizer.lr:g}"),
        ("Data", f"{record.get('num_images', '?')} images at resolution {recipe.resolution}"),
        ("File", f"{plan.variants[-1].file.stat().st_size / 2**20:.1f} MiB"),
    ]
