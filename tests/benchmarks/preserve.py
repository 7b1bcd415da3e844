"""Output preservation: a base model learns a style with and without it, and prompts without the trigger are
sampled again with the same noise.

All training images have the style, so that without preservation every sample drifts towards it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.core import storage
from lorakit.data.prompts import Prompt, Sample, load_prompts
from lorakit.models import base_model, clip_score
from lorakit.quickstart import shape_world
from lorakit.quickstart.concept import DemoConcept, make_prompts, write_prompt_file
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from tests import runs

STYLE, CLASS_NOUN = DemoConcept("striped"), "solid"
VARIANTS = {"base": None, "without": 0.0, "with": 1.0}  # weight of output preservation
GOAL = 0.8  # of the distance without preservation


def measure(base: str = "tiny-dit", *, steps: int = 150) -> dict[str, Any]:
    """Return by variant the distance of prompts without the trigger from the base model, and CLIP-T.

    The distance is the RMSE of pixels in 0..1.
    """
    clip = clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_dataset(folder / "data")
        prompts = load_prompts(write_prompt_file(folder / "p.jsonl", make_prompts(STYLE)))
        samples = {v: _sample_variant(folder, base, w, steps, prompts) for v, w in VARIANTS.items()}
    results: dict[str, Any] = {"base model": base, "steps": steps}
    for variant, variant_samples in samples.items():
        row = results[variant] = {}
        for kind in ("subject", "unrelated"):
            of_kind = [sample for sample in variant_samples if sample.prompt.kind == kind]
            texts = [sample.prompt.score_text for sample in of_kind]
            row[f"clip_t_{kind}"] = round(float(clip.clip_t([s.image for s in of_kind], texts).mean()), 4)
        row["distance"] = round(_distance(samples["base"], variant_samples), 4)
    results["passes"] = results["with"]["distance"] <= GOAL * results["without"]["distance"]
    return results


def _make_dataset(folder: Path) -> None:
    for index, scene in enumerate(STYLE.scenes(24, seed=1)):
        storage.save_image(folder / f"{index:02d}.png", shape_world.render_scene(scene))
        storage.write_text(folder / f"{index:02d}.txt", shape_world.scene_caption(scene) + "\n")
    options = PrepareOptions(resolution=64, size_multiple=16, batch_size=8, bucket_mode="square")
    prepare_dataset(folder, options)


def _sample_variant(
    folder: Path, base: str, weight: float | None, steps: int, prompts: list[Prompt]
) -> list[Sample]:
    """Sample all prompts with two seeds from the base model, or from an adapter trained with this weight."""
    file = None
    if weight is not None:
        run = folder / f"run-{weight}"
        settings = {
            "adapter": {"rank": 16, "alpha": 16},
            "optimizer": {"lr": 2e-3},
            "train": {"steps": steps, "batch_size": 8, "save_every": steps, "precision": "fp32"},
            "trigger": STYLE.word,
            "class_noun": CLASS_NOUN,
            "objective": {"output_preservation": weight},
        }
        runs.train(runs.make_recipe(folder / f"{weight}.yaml", base, folder / "data", run, **settings))
        file = run / "adapter.safetensors"
    two_seeds = [dataclasses.replace(prompt, seeds=prompt.seeds[:2]) for prompt in prompts]
    options = SamplingOptions(num_inference_steps=20, guidance_scale=4, size=(64, 64), quiet=True)
    return SamplingPipeline(base, file).sample(two_seeds, options, "samples")


def _distance(base_samples: list[Sample], samples: list[Sample]) -> float:
    """Return the mean RMSE over the images of prompts without the trigger."""
    pairs = [(a, b) for a, b in zip(base_samples, samples, strict=True) if a.prompt.kind == "unrelated"]
    differences = [np.asarray(a.image, float) - np.asarray(b.image, float) for a, b in pairs]
    return float(np.mean([np.sqrt((difference**2).mean()) for difference in differences])) / 255


def format_report(results: dict[str, Any]) -> str:
    """Return the results as a few lines of text."""
    lines = [f"{results['base model']}, {results['steps']} steps on images of a style"]
    for variant in VARIANTS:
        row = results[variant]
        lines.append(
            f"  {variant:8} prompts without the word: distance {row['distance']:.4f}, "
            f"CLIP-T {row['clip_t_unrelated']:.3f}; with it: CLIP-T {row['clip_t_subject']:.3f}"
        )
    return "\n".join(lines)
