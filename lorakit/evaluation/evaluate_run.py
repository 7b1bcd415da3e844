"""The evaluation of a run: every checkpoint at every strength, with the same prompts and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.adapters.selection_record import EVALUATION_FOLDER
from lorakit.adapters.sources import read_last_step
from lorakit.config.recipe import Recipe, change_recipe, load_recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, first_line
from lorakit.data.prompts import Prompt, load_prompts
from lorakit.data.subjects import concept_subjects
from lorakit.evaluation import race as racing
from lorakit.evaluation.checkpoints import list_variants
from lorakit.evaluation.guests import GuestRequest, find_guests
from lorakit.evaluation.image_budget import fit_budget
from lorakit.evaluation.judge_changes import settings_before, weight_changes
from lorakit.evaluation.judges import (
    DEFAULT_JUDGES,
    JudgeOptions,
    load_folder_references,
    load_judges,
    load_run_references,
)
from lorakit.evaluation.measure import score_variants
from lorakit.evaluation.on_demand import release
from lorakit.evaluation.read_facts import read_run_facts
from lorakit.evaluation.report import write
from lorakit.evaluation.report.verdict import selection_headline
from lorakit.evaluation.result import EvaluationResult
from lorakit.evaluation.run_sampling import PipelineFacts, RunPlan, RunSampler
from lorakit.evaluation.score_table import BASE, Evaluation
from lorakit.evaluation.scoring_inputs import JudgeModels, ReferenceImages, VariantSamples
from lorakit.evaluation.selection_file import next_commands, selected_checkpoint, write_selection
from lorakit.evaluation.vote.settle import select_with_votes
from lorakit.evaluation.word_choice import prompt_alternatives
from lorakit.models import device as devices
from lorakit.sampling.pipeline import SamplingOptions
from lorakit.sampling.saved_samples import check_mode
from lorakit.training.run_folder import RunFolder, run_recipe_file
from lorakit.training.run_memory import with_recorded_quantization
from lorakit.training.run_precision import with_precision

IMAGES_FOLDER = "images"


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
    guests: Sequence[GuestRequest] = (),
    race: bool = False,
    max_images: int | None = None,
    title: str | None = None,
) -> EvaluationResult:
    """Sample and score the base model and the checkpoints of a run, and select one.

    Writes report.html, scores.json, scores.csv, selection.json and the images to RUN/eval. Images, features
    and scores that are there and still valid are reused.

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
        guests: adapters of other origin to compare with, sampled with the same prompts and noise.
        race: sample some of the prompts first, and the others only for variants that can still be the best.
        max_images: limit of the number of images: fewer seeds, then fewer checkpoints.
        title: heading of the report.

    Raises ConfigError if the run has no prompts or no adapter, or a model is missing.
    """
    run, root = Path(run), Path(run) / EVALUATION_FOLDER
    plan = _plan_evaluation(run, prompts, checkpoints, strengths, guests, max_images)
    judge_models = load_judges(judges, plan.recipe.base)
    reference_images = _load_references(plan, references, root)
    recipe = plan.recipe
    options = sampling or _sampling_of(recipe)
    check_mode(options.provenance)
    sampler = RunSampler(plan, options, root / IMAGES_FOLDER, with_losses=validation_loss, is_race=race)
    if race:
        samples = _race(plan, sampler, judge_models, reference_images, root, max_drift)
    else:
        samples = sampler.sample(plan.prompts, plan.variants, plan.guests)
    evaluation = _new_evaluation(plan, sampler, max_drift, title)
    _read_facts(evaluation, plan, judge_models, options.quiet)
    words = prompt_alternatives(plan.prompts, alternative_words) if alternative_words else None
    inputs = (evaluation, samples, judge_models, reference_images)
    score_variants(*inputs, root=root, alternatives=words, quiet=options.quiet)
    evaluation.notes += weight_changes(settings_before(root), evaluation.settings)
    return _write_results(plan, evaluation, root, prompts)


def _read_facts(evaluation: Evaluation, plan: RunPlan, judges: JudgeModels, quiet: bool) -> None:
    """Read the facts of the run that explain its scores, and release CLIP for the judges that come first."""
    record = storage.read_json(plan.run / "run.json")
    evaluation.facts = read_run_facts(plan.recipe, record, judges.clip, quiet=quiet)
    release(judges.clip)


def _write_results(
    plan: RunPlan,
    evaluation: Evaluation,
    root: Path,
    prompts: str | Path | None,
) -> EvaluationResult:
    """Select, and write the report and the selection; the same scores give the same bytes."""
    selection = select_with_votes(root, evaluation)
    metrics = RunFolder(plan.run).metrics()
    report = write.write_evaluation(root, evaluation, selection, metrics=metrics)
    write_selection(plan.run, evaluation, selection, selection_headline(evaluation, selection).text)
    return EvaluationResult(
        evaluation,
        selection,
        report,
        selected_checkpoint(plan.run, selection),
        next_commands(plan.run, Path(prompts) if prompts else None),
    )


def _sampling_of(recipe: Recipe) -> SamplingOptions:
    """Return the sampling options of a run's recipe."""
    samples = recipe.samples
    return SamplingOptions(samples.num_inference_steps, samples.guidance_scale, provenance=samples.provenance)


def _plan_evaluation(
    run: Path,
    prompts: str | Path | None,
    checkpoints: str | Sequence[int],
    strengths: Sequence[float],
    guests: Sequence[GuestRequest],
    max_images: int | None,
) -> RunPlan:
    """Check everything that can be checked before the base model is loaded."""
    recipe = with_precision(with_recorded_quantization(load_recipe(run_recipe_file(run)), run), [run])
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
    names = [BASE, *(variant.name for variant in listed.variants)]
    guest_list, guest_notes = find_guests(guests, recipe.triggers, names)
    plan = RunPlan(run, recipe, prompt_list, listed.variants, guest_list, notes + guest_notes)
    if max_images is not None:
        budget = fit_budget(plan.prompts, plan.variants, len(guest_list), max_images)
        plan.prompts, plan.variants = budget.prompts, budget.variants
        plan.notes += [budget.note] if budget.note else []
    return plan


def _load_references(plan: RunPlan, folder: str | Path | None, root: Path) -> ReferenceImages | None:
    """Load the reference images; without the run's dataset only the scores that need them are missing."""
    if folder:
        nouns = {concept.class_noun for concept in plan.recipe.concepts if concept.class_noun}
        return load_folder_references(Path(folder), root, nouns.pop() if len(nouns) == 1 else None)
    try:
        return load_run_references(plan.recipe, root)
    except (DataError, OSError) as error:
        reason = first_line(error)
        plan.notes.append(f"Fidelity and copies are not measured: {reason} (use --references DIR).")
        return None


def _race(
    plan: RunPlan,
    sampler: RunSampler,
    judges: JudgeModels,
    references: ReferenceImages | None,
    root: Path,
    max_drift: float | None,
) -> list[VariantSamples]:
    """Sample some prompts with all variants, and the others with those that can still be the best."""
    first = racing.first_prompts(plan.prompts, plan.recipe.triggers)
    samples = sampler.sample(first, plan.variants, listed=first)
    rest = [prompt for prompt in plan.prompts if prompt not in first]
    if not rest:
        plan.notes.append(f"There was no race: there are no prompts after the first {len(first)}.")
        return samples + sampler.sample_guests(plan.prompts, plan.guests)
    interim = _new_evaluation(plan, sampler, max_drift, None, first)
    score_variants(interim, samples, judges, references, root=root, quiet=sampler.options.quiet)
    stopped = racing.find_losers(interim)
    plan.notes.append(racing.stopped_note(stopped, len(first), len(plan.prompts)))
    remaining = [variant for variant in plan.variants if variant.name not in stopped]
    more = sampler.sample(rest, remaining, listed=plan.prompts)
    joined = _join_parts(samples, more, stopped, plan.prompts)
    return joined + sampler.sample_guests(plan.prompts, plan.guests)


def _join_parts(
    first: Sequence[VariantSamples],
    rest: Sequence[VariantSamples],
    stopped: Sequence[str],
    prompts: Sequence[Prompt],
) -> list[VariantSamples]:
    """Return the variants with the images of both parts in the order of the prompts."""
    more = {variant.name: variant.samples for variant in rest}
    order = {prompt.id: number for number, prompt in enumerate(prompts)}
    joined = []
    for variant in first:
        files = sorted([*variant.samples, *more.get(variant.name, [])], key=lambda s: order[s.prompt.id])
        joined.append(replace(variant, samples=files, stopped_early=variant.name in stopped))
    return joined


def _new_evaluation(
    plan: RunPlan,
    sampler: RunSampler,
    max_drift: float | None,
    title: str | None,
    prompts: Sequence[Prompt] | None = None,
) -> Evaluation:
    """Return the evaluation before anything is scored; `prompts` are those of a part."""
    facts = sampler.facts
    assert facts is not None, "nothing was sampled"
    notes = [*plan.notes, *(note for note in facts.notes if note not in plan.notes)]
    return Evaluation(
        title=title or f"{plan.run.resolve().name}: checkpoint selection",
        prompts=list(plan.prompts if prompts is None else prompts),
        variants=[],
        triggers=plan.recipe.triggers,
        settings=facts.settings | {"max_drift": max_drift},
        details=_run_details(plan, facts),
        notes=notes,
        last_step=read_last_step(plan.run),
    )


def _run_details(plan: RunPlan, facts: PipelineFacts) -> list[tuple[str, str]]:
    """Rows of the report about the run: base model, adapter, training, data and file size."""
    recipe, optimizer, size = plan.recipe, plan.recipe.optimizer, facts.size
    record = storage.read_json(plan.run / "run.json")
    rank = f"rank {recipe.adapter.rank}, alpha {recipe.adapter.alpha:g}"
    steps = f"{recipe.train.steps} steps of {recipe.effective_batch} images"
    return [
        ("Base model", f"{Path(recipe.base).name} ({facts.family_title})"),
        ("Adapter", f"{rank}, {size.num_modules} modules, {size.num_parameters:,} parameters"),
        ("Training", f"{steps}, {optimizer.name}, learning rate {optimizer.lr:g}"),
        ("Data", f"{record.get('num_images', '?')} images at resolution {recipe.resolution}"),
        ("File", f"{plan.variants[-1].file.stat().st_size / 2**20:.1f} MiB"),
    ]
