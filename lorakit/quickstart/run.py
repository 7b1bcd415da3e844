"""`lorakit quickstart`: the whole job on the embedded base, in minutes, without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit import recipe
from lorakit.errors import LorakitError
from lorakit.progress import duration
from lorakit.quickstart.concept import PICTURES, Concept, make_dataset, make_prompts, previews, write_prompts

if TYPE_CHECKING:
    from lorakit.evaluate import Comparison

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
    from lorakit.launch import command, run

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
    from lorakit.trial import evaluate_run

    comparison, report = evaluate_run(
        folder,
        prompt_file=prompts,
        words=taught.alternatives,
        title=f"{base} learns {concept!r} from {PICTURES} pictures",
    )
    print(f"4/4  done in {duration(time.monotonic() - began)}")
    print(
        CLOSING.format(
            verdict=verdict(comparison, concept),
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


def verdict(comparison: Comparison, concept: str) -> str:
    """What the figures say, in three lines."""
    groups = {group.kind: group for group in comparison.groups}
    taught, other = groups["concept"], groups["other"]
    if taught.right_before is None or taught.right_after is None:
        raise LorakitError(f"no prompt asks for {concept!r}")
    gain, drift = taught.gain, other.gain
    return "\n".join(
        [
            f"CLIP-T on prompts with the word: {_x100(taught.before.mean)} -> {_x100(taught.after.mean)}, "
            f"gain {_x100(gain.mean)} (95 % interval {_x100(gain.low)} to {_x100(gain.high)})",
            f"CLIP picks {concept!r} in {taught.right_before.mean:.0%} of pictures before, "
            f"{taught.right_after.mean:.0%} after",
            f"prompts without it: {_x100(drift.mean)} ({_x100(drift.low)} to {_x100(drift.high)})",
        ]
    )


def _x100(value: float) -> str:
    return f"{100 * value:.1f}"
