"""What preservation keeps: the embedded base learns a style with and without it, and prompts without the
trigger are drawn again with the same noise.

Only pictures of the style are shown, which is when an adapter spills over into all that the base draws.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.core import storage
from lorakit.data import prompts
from lorakit.models import base_model, clip_score
from lorakit.quickstart import shape_world
from lorakit.quickstart.concept import DemoConcept, make_prompts, write_prompt_file
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from tests import runs

STYLE, PLAIN = DemoConcept("striped"), "solid"
ARMS = {"base": None, "without": 0.0, "with": 1.0}
GOAL = 0.8  # of the distance without preservation


def measure(base: str = "tiny-dit", *, steps: int = 150) -> dict[str, Any]:
    """By arm: how far prompts without the trigger moved from the base (RMSE of pixels, 0 to 1), and CLIP-T of
    both kinds of prompt."""
    clip = clip_score.ClipScorer.local(base_model.EMBEDDED_CLIP)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _dataset(folder / "data")
        wanted = prompts.load_prompts(write_prompt_file(folder / "p.jsonl", make_prompts(STYLE)))
        drawn = {arm: _drawn(folder, base, weight, steps, wanted) for arm, weight in ARMS.items()}
    rows: dict[str, Any] = {"base model": base, "steps": steps}
    for arm, shots in drawn.items():
        row = rows[arm] = {}
        for kind in ("concept", "other"):
            mine = [shot for shot in shots if shot.prompt.kind == kind]
            texts = [shot.prompt.score_text for shot in mine]
            row[f"clip_t_{kind}"] = round(float(clip.clip_t([s.image for s in mine], texts).mean()), 4)
        row["moved"] = round(_distance(drawn["base"], shots), 4)
    rows["good"] = rows["with"]["moved"] <= GOAL * rows["without"]["moved"]
    return rows


def _dataset(folder: Path) -> None:
    for index, scene in enumerate(STYLE.scenes(24, seed=1)):
        storage.save_image(folder / f"{index:02d}.png", shape_world.render_scene(scene))
        storage.write_text(folder / f"{index:02d}.txt", shape_world.scene_caption(scene) + "\n")
    prepare_dataset(folder, PrepareOptions(resolution=64, step=16, batch=8, mode="square"))


def _drawn(
    folder: Path, base: str, weight: float | None, steps: int, wanted: list[prompts.Prompt]
) -> list[prompts.Sample]:
    """All prompts at two seeds, by the base alone or an adapter trained with this weight of preservation."""
    file = None
    if weight is not None:
        run = folder / f"run-{weight}"
        changes = {
            "adapter": {"rank": 16, "alpha": 16},
            "optimizer": {"lr": 2e-3},
            "train": {"steps": steps, "batch_size": 8, "save_every": steps, "precision": "fp32"},
            "trigger": STYLE.word,
            "class_noun": PLAIN,
            "objective": {"preserve": weight},
        }
        runs.train(runs.make_recipe(folder / f"{weight}.yaml", base, folder / "data", run, **changes))
        file = run / "adapter.safetensors"
    few = [dataclasses.replace(prompt, seeds=prompt.seeds[:2]) for prompt in wanted]
    return SamplingPipeline(base, file).draw(
        few, SamplingOptions(steps=20, guidance=4, size=(64, 64), quiet=True), "samples"
    )


def _distance(ours: list[prompts.Sample], theirs: list[prompts.Sample]) -> float:
    """Mean over pictures of prompts without the trigger."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.prompt.kind == "other"]
    values = [np.asarray(a.image, float) - np.asarray(b.image, float) for a, b in pairs]
    return float(np.mean([np.sqrt((value**2).mean()) for value in values])) / 255


def report(found: dict[str, Any]) -> str:
    """A few lines."""
    lines = [f"{found['base model']}, {found['steps']} steps on pictures of a style, preserve 0 and 1"]
    for arm in ARMS:
        row = found[arm]
        lines.append(
            f"  {arm:8} prompts without the word: moved {row['moved']:.4f}, CLIP-T {row['clip_t_other']:.3f};"
            f" with it: CLIP-T {row['clip_t_concept']:.3f}"
        )
    return "\n".join(lines)
