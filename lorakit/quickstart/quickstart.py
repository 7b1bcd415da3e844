"""`lorakit quickstart`: the whole job on the embedded base, in minutes, without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.config import recipe
from lorakit.core.progress import duration
from lorakit.quickstart.concept import PICTURES, Concept, make_dataset, make_prompts, previews, write_prompts

if TYPE_CHECKING:
    from lorakit.evaluation.score_table import Evaluation

CLOSING = """
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
    from data_tools.prepare import PrepareOptions, prepare
    from lorakit.core.launch import command, run

    began = time.monotonic()
    taught = Concept(concept)
    data, folder = Path(out) / f"data-{concept}", Path(out) / f"{base}-{concept}"
    wanted = make_prompts(taught)
    prompts = write_prompts(Path(out) / f"prompts-{concept}.jsonl", wanted)
    preview = write_prompts(Path(out) / f"preview-{concept}.jsonl", previews(wanted))
    print(f"1/4  {concept!r} is new to {base}: {PICTURES} pictures of it among others, in {data}")
    make_dataset(data, taught)
    prepare(data, PrepareOptions(resolution=64, step=16, batch=16, mode="square"))
    print(f"2/4  training {base}")
    file = recipe.folder() / f"quickstart-{base.removeprefix('tiny-')}.yaml"
    overrides = [f"dataset={data}", f"out={folder}", f"samples.prompts={preview}", f"trigger={concept}"]
    overrides += [f"train.steps={steps}"] if steps else []
    recipe.load(file, overrides)
    if code := run(command(str(file), overrides)):
        return code
    print("3/4  the same prompts and noise, before and after")
    from lorakit.evaluation.evaluate_run import Request, evaluate_run

    request = Request(
        prompts=prompts,
        checkpoints="last",
        words=taught.alternatives,
        title=f"{base} learns {concept!r} from {PICTURES} pictures",
    )
    result = evaluate_run(folder, request)
    report = result.report
    print(f"4/4  done in {duration(time.monotonic() - began)}")
    print(
        CLOSING.format(
            verdict=verdict(result.evaluation, concept),
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


def verdict(evaluation: Evaluation, concept: str) -> str:
    """What the figures say, in three lines."""
    from lorakit.evaluation.report.number_format import spread
    from lorakit.evaluation.score_table import BASE, metric

    base, after = evaluation.arms
    assert base.name == BASE
    taught, other = evaluation.of_role("subject"), evaluation.of_role("unrelated")
    clip, right = metric("clip_t"), metric("right")
    before, now = (spread(evaluation.interval(arm, "clip_t", taught), clip) for arm in (base, after))
    gain = spread(evaluation.gain(base, after, "clip_t", taught), clip, signed=True)
    rest = spread(evaluation.gain(base, after, "clip_t", other), clip, signed=True)
    picks = [spread(evaluation.interval(arm, "right", taught), right) for arm in (base, after)]
    return "\n".join(
        [
            f"CLIP-T on prompts with the word: {before} -> {now}, gain {gain} (brackets: 95 % intervals)",
            f"CLIP picks {concept!r} in {picks[0]} of pictures before, {picks[1]} after",
            f"prompts without it: {rest}",
        ]
    )
