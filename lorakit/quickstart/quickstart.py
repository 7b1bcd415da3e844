"""`lorakit quickstart`: the whole job on the embedded base, in minutes, without a network."""

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
    from lorakit.evaluation.score_table import Evaluation

CLOSING_TEXT = """
{verdict}

  report          {report}
  pictures        {sheet}
  dataset report  {data}
  adapter         {adapter}
  for ComfyUI and others
                  {exports}

Your own photos, with any diffusers model (a folder or a hub id) as the base:

  lorakit data prepare PHOTOS --class-noun dog --trigger sks
  lorakit train recipes/sd15.yaml dataset=PHOTOS out=runs/dog
"""


def quickstart(out: str, *, base: str, concept: str, steps: int | None = None) -> int:
    """Make a dataset, prepare it, train, export, sample before and after, score, report; returns the exit
    code."""
    from data_tools.prepare import PrepareOptions, prepare_dataset
    from lorakit.core.launch import launch_command, run_launcher

    began = time.monotonic()
    taught = DemoConcept(concept)
    data, folder = Path(out) / f"data-{concept}", Path(out) / f"{base}-{concept}"
    wanted = make_prompts(taught)
    prompts = write_prompt_file(Path(out) / f"prompts-{concept}.jsonl", wanted)
    preview = write_prompt_file(Path(out) / f"preview-{concept}.jsonl", preview_prompts(wanted))
    print(f"1/4  {concept!r} is new to {base}: {CONCEPT_IMAGES} pictures of it among others, in {data}")
    make_dataset(data, taught)
    prepare_dataset(data, PrepareOptions(resolution=64, step=16, batch=16, mode="square"))
    print(f"2/4  training {base}")
    file = recipe.builtin_recipes_folder() / f"quickstart-{base.removeprefix('tiny-')}.yaml"
    overrides = [f"dataset={data}", f"out={folder}", f"samples.prompts={preview}", f"trigger={concept}"]
    overrides += [f"train.steps={steps}"] if steps else []
    recipe.load_recipe(file, overrides)
    if code := run_launcher(launch_command(str(file), overrides)):
        return code
    print("3/4  the same prompts and noise, before and after")
    from lorakit.evaluation.evaluate_run import RunEvaluationOptions, evaluate_run

    request = RunEvaluationOptions(
        prompts=prompts,
        checkpoints="last",
        words=taught.alternatives,
        title=f"{base} learns {concept!r} from {CONCEPT_IMAGES} pictures",
    )
    result = evaluate_run(folder, request)
    report = result.report
    print(f"4/4  done in {format_duration(time.monotonic() - began)}")
    print(
        CLOSING_TEXT.format(
            verdict=format_summary(result.evaluation, concept),
            report=report,
            sheet=report.with_name("contact.png"),
            data=data / "report.html",
            adapter=folder / "adapter.safetensors",
            exports="\n                  ".join(
                str(f) for f in sorted((folder / "exports").glob("*.safetensors"))
            ),
        )
    )
    return 0


def format_summary(evaluation: Evaluation, concept: str) -> str:
    """What the figures say, in three lines."""
    from lorakit.evaluation.report.number_format import format_interval
    from lorakit.evaluation.score_table import BASE, metric_spec

    base, after = evaluation.arms
    assert base.name == BASE
    taught, other = evaluation.of_role("subject"), evaluation.of_role("unrelated")
    clip, right = metric_spec("clip_t"), metric_spec("right")
    before, now = (format_interval(evaluation.interval(arm, "clip_t", taught), clip) for arm in (base, after))
    gain = format_interval(evaluation.gain(base, after, "clip_t", taught), clip, signed=True)
    rest = format_interval(evaluation.gain(base, after, "clip_t", other), clip, signed=True)
    picks = [format_interval(evaluation.interval(arm, "right", taught), right) for arm in (base, after)]
    return "\n".join(
        [
            f"CLIP-T on prompts with the word: {before} -> {now}, gain {gain} (brackets: 95 % intervals)",
            f"CLIP picks {concept!r} in {picks[0]} of pictures before, {picks[1]} after",
            f"prompts without it: {rest}",
        ]
    )
