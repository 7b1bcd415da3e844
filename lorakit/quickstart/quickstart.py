"""`lorakit quickstart`: prepare, train, evaluate and export on an embedded base model, offline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.config import recipe
from lorakit.core.progress import format_duration
from lorakit.quickstart.concept import (
    CONCEPT_IMAGES,
    DemoConcept,
    make_dataset,
    make_prompts,
    preview_prompts,
    write_prompt_file,
)

if TYPE_CHECKING:
    from lorakit.evaluation.result import EvaluationResult

CLOSING_TEXT = """
{verdict}

{summary}

  evaluation report  {report}
  images             {contact_sheet}
  dataset report     {dataset_report}
  adapter            {adapter}
  exported files     {exports}

Use the selected checkpoint:

  {next_commands}

Train on your own photos, with any diffusers model (a folder or a hub id) as the base model:

  lorakit data prepare PHOTOS --class-noun dog --trigger sks
  lorakit train sd15 dataset=PHOTOS out=runs/dog
"""


def quickstart(out: str, *, base: str, concept: str, steps: int | None = None) -> int:
    """Create a dataset, prepare it, train, export and evaluate; return the exit code.

    `base` is an embedded base model (tiny-unet or tiny-dit), `concept` a style or shape that it has not seen,
    `steps` the number of training steps, None for the recipe's.
    """
    from data_tools.prepare import PrepareOptions, prepare_dataset
    from lorakit.core.launch import run_training, training_command

    started_at = time.monotonic()
    demo = DemoConcept(concept)
    dataset, run = Path(out) / f"data-{concept}", Path(out) / f"{base}-{concept}"
    prompts = make_prompts(demo)
    prompt_file = write_prompt_file(Path(out) / f"prompts-{concept}.jsonl", prompts)
    sample_prompts = Path(out) / f"sample-prompts-{concept}.jsonl"
    write_prompt_file(sample_prompts, preview_prompts(prompts))
    print(f"1/4  dataset: {CONCEPT_IMAGES} images of {concept!r}, which {base} has not seen, in {dataset}")
    make_dataset(dataset, demo)
    prepare_dataset(
        dataset, PrepareOptions(resolution=64, size_multiple=16, batch_size=16, bucket_mode="square")
    )
    print(f"2/4  training {base}")
    recipe_file = recipe.builtin_recipes_folder() / f"quickstart-{base.removeprefix('tiny-')}.yaml"
    overrides = [f"dataset={dataset}", f"out={run}", f"trigger={concept}"]
    overrides += [f"samples.prompts={sample_prompts}"]
    overrides += [f"train.steps={steps}"] if steps else []
    recipe.load_recipe(recipe_file, overrides)
    if code := run_training(training_command(str(recipe_file), overrides)):
        return code
    print("3/4  evaluating: the same prompts and noise without and with the adapter")
    from lorakit.evaluation.evaluate_run import evaluate_run
    from lorakit.evaluation.report.verdict import selection_headline

    result = evaluate_run(
        run,
        prompts=prompt_file,
        alternative_words=demo.alternatives,
        title=f"{base} learns {concept!r} from {CONCEPT_IMAGES} images",
    )
    print(f"4/4  done in {format_duration(time.monotonic() - started_at)}")
    exports = [str(file) for file in sorted((run / "exports").glob("*.safetensors"))]
    print(
        CLOSING_TEXT.format(
            verdict=selection_headline(result.evaluation, result.selection).text,
            summary=format_summary(result, concept),
            report=result.report,
            contact_sheet=result.report.with_name("contact-sheet.png"),
            dataset_report=dataset / "report.html",
            adapter=result.best.adapter if result.best else run / "adapter.safetensors",
            exports=("\n" + " " * 21).join(exports),
            next_commands="\n  ".join(result.next_commands),
        )
    )
    return 0


def format_summary(result: EvaluationResult, concept: str) -> str:
    """Return three lines: CLIP-T with the concept's word, CLIP's choice of the word, CLIP-T without it."""
    from lorakit.evaluation.metric_table import metric_spec
    from lorakit.evaluation.report.number_format import format_interval

    evaluation, best = result.evaluation, result.best
    base, *checkpoints = evaluation.variants
    adapter = next((one for one in checkpoints if best and one.step == best.step), checkpoints[-1])
    subject, unrelated = evaluation.prompts_of_role("subject"), evaluation.prompts_of_role("unrelated")
    clip_t, accuracy = metric_spec("clip_t"), metric_spec("clip_accuracy")
    before, after = (
        format_interval(evaluation.interval(variant, "clip_t", subject), clip_t)
        for variant in (base, adapter)
    )
    chosen_before, chosen_after = (
        format_interval(evaluation.interval(variant, "clip_accuracy", subject), accuracy)
        for variant in (base, adapter)
    )
    gain, other_gain = (
        format_interval(evaluation.paired_difference(base, adapter, "clip_t", prompts), clip_t, signed=True)
        for prompts in (subject, unrelated)
    )
    return "\n".join(
        [
            f"CLIP-T on prompts with {concept!r}: {before} -> {after}, gain {gain} "
            "(95 % intervals in brackets)",
            f"CLIP recognizes {concept!r} in {chosen_before} of the images before, in {chosen_after} after",
            f"CLIP-T on prompts without it: gain {other_gain}",
        ]
    )
