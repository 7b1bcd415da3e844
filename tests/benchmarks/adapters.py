"""Adapters other than LoRA on the embedded base models, scored by the embedded CLIP, with a contact sheet.

`python -m tests.benchmarks.adapters [dora] [lokr] [slider] [text] [word] --out DIR`

dora, lokr: tiny-dit has not seen stripes; share of images of "striped" prompts for which CLIP chooses striped
among five styles. slider: strengths from -1 to 1 between blue and red; CLIP's score of the red caption minus
that of the blue one. text, word: purple hearts under a word without meaning, by the U-Net's text encoder
(with almost no learning rate for the denoiser) or by textual inversion with two vectors; share for which
CLIP chooses heart among six shapes and purple among eight colours. Two to four minutes each on a free core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from PIL import Image

from lorakit import manifest, reports
from lorakit.config import recipe
from lorakit.core import checksums, storage
from lorakit.data.prompts import Prompt
from lorakit.imaging import decode
from lorakit.models import base_model, clip_score
from lorakit.quickstart import shape_world
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from lorakit.training import slider
from tests import runs
from tests.evaluation import embedded
from tests.pretraining import assess
from tests.pretraining import clip as clip_model

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)
WORDS = {"text": "zwx", "word": "blorp"}
TRAIN = {"batch_size": 8, "save_every": 10_000, "precision": "fp32"}
OPTIONS = SamplingOptions(
    num_inference_steps=12, guidance_scale=4.0, size=(64, 64), batch_size=16, quiet=True
)
Judge = Callable[..., dict[str, float]]


def load_judge() -> Judge:
    """Return a function that computes by attribute the share of images whose word CLIP chooses."""
    clip, tokenizer = clip_model.load_clip(base_model.EMBEDDED_CLIP)

    def shares(
        samples: Sequence[Any], scenes: Sequence[shape_world.Scene], words: dict[str, Any]
    ) -> dict[str, float]:
        images = np.stack([np.asarray(sample.image) for sample in samples])
        correct = assess.clip_choices(clip, tokenizer, images, scenes, alternatives=words)
        return {name: round(float(right.mean()), 3) for name, right in correct.items()}

    return shares


def measure_style(method: str, out: Path, steps: int) -> dict[str, Any]:
    """Learn stripes with DoRA or LoKr."""
    data = embedded.dataset(out / "striped", 24, ordinary=24)
    # LoKr has few parameters: here a 4 x 4 and a 32 x 32 matrix for each layer
    adapter = (
        {"type": "dora", "rank": 16}
        if method == "dora"
        else {"type": "lokr", "rank": 64, "alpha": 64, "factor": 4}
    )
    lr = 4e-3 if method == "dora" else 1e-2
    settings = {"adapter": adapter, "optimizer": {"name": "adamw", "lr": lr, "schedule": "cosine"}}
    train = TRAIN | {"steps": steps}
    file = runs.make_recipe(out / f"{method}.json", "tiny-dit", data, out / method, **settings, train=train)
    run = runs.train(file)
    scenes = embedded.CONCEPT.scenes(16, seed=3)
    prompts = [Prompt(f"s{i}", shape_world.scene_caption(s), "", seeds=(0,)) for i, s in enumerate(scenes)]
    pipeline = SamplingPipeline("tiny-dit", run / "adapter.safetensors")
    after = pipeline.sample(prompts, OPTIONS, method)
    with pipeline.adapter_disabled():
        before = pipeline.sample(prompts, OPTIONS, "base")
    judge = load_judge()
    words = {"style": shape_world.STYLES, "shape": shape_world.BASE_SHAPES}
    save_sheet(
        out / f"{method}.png", {"base": before[:8], method: after[:8]}, [p.prompt for p in prompts[:8]]
    )
    return {"before": judge(before, scenes, words), "after": judge(after, scenes, words)}


def measure_slider(out: Path, steps: int) -> dict[str, Any]:
    """Train a slider from blue to red."""
    texts = {c: f"a {c} circle on a white background" for c in ("red", "blue")}
    settings = {
        "base": "tiny-unet",
        "out": str(out / "slider"),
        "resolution": 64,
        "slider": {
            "target_prompt": "a circle on a white background",
            "positive_prompt": texts["red"],
            "negative_prompt": texts["blue"],
            "guidance_scale": 0.5,
        },
        "adapter": {"rank": 8, "alpha": 8},
        "optimizer": {"name": "adamw", "lr": 2e-3, "schedule": "cosine"},
        "train": TRAIN | {"steps": steps},
        "samples": {"num_inference_steps": 12, "guidance_scale": 4.0},
        "export": [],
    }
    file = storage.write_json(out / "slider.json", settings)
    slider.generate_slider_images(recipe.load_recipe(file))
    run = runs.train(file)
    pipeline = SamplingPipeline("tiny-unet", run / "adapter.safetensors")
    scores: dict[str, Any] = {}
    rows: dict[float, list[Any]] = {}
    for shape in ("circle", "square"):  # square was not trained
        prompts = [Prompt(shape, f"a {shape} on a white background", "", seeds=tuple(range(100, 112)))]
        scores[shape] = {}
        for strength in STRENGTHS:
            pipeline.load_adapter(run / "adapter.safetensors", strength)
            samples = pipeline.sample(prompts, OPTIONS, f"{shape} {strength:+g}")
            rows.setdefault(strength, []).extend(samples[:2])
            scores[shape][f"{strength:+g}"] = red_minus_blue(samples, shape)
    columns = {f"{strength:+g}": samples for strength, samples in rows.items()}
    save_sheet(out / "slider.png", columns, ["circle", "circle", "square", "square"])
    return scores


def red_minus_blue(samples: Sequence[Any], shape: str) -> float:
    """Return CLIP's mean score for red minus that for blue."""
    scorer = clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    features = scorer.image_features([sample.image for sample in samples])
    red, blue = (
        scorer.clip_t(features, [f"a {colour} {shape} on a white background"] * len(samples)).mean()
        for colour in ("red", "blue")
    )
    return round(float(red - blue), 4)


def measure_word(method: str, out: Path, steps: int) -> dict[str, Any]:
    """Learn purple hearts under a new word."""
    rng = np.random.default_rng(5)
    scenes = [purple_heart(rng) for _ in range(40)]
    data = make_dataset(out / f"hearts-{method}", scenes[:24], WORDS[method])
    if method == "text":
        adapter = {"rank": 16, "alpha": 16, "text_encoder": True, "text_encoder_lr": 2e-3}
        settings: dict[str, Any] = {"adapter": adapter, "optimizer": {"name": "adamw", "lr": 1e-7}}
    else:
        embedding = {"token": WORDS[method], "initializer_token": "red circle", "num_vectors": 2, "lr": 2e-2}
        settings = {"adapter": {"type": "none"}, "textual_inversion": embedding}
        settings["optimizer"] = {"name": "adamw"}
    train = TRAIN | {"steps": steps}
    run = runs.train(
        runs.make_recipe(out / f"{method}.json", "tiny-unet", data, out / method, **settings, train=train)
    )
    pipeline = SamplingPipeline("tiny-unet", run / "adapter.safetensors")
    texts = [caption_with_word(scene, WORDS[method]) for scene in scenes[24:]]
    prompts = [Prompt(f"h{i}", text, "", seeds=(0,)) for i, text in enumerate(texts)]
    after = pipeline.sample(prompts, OPTIONS, method)
    with pipeline.adapter_disabled():
        before = pipeline.sample(prompts, OPTIONS, "base")
    words = {"shape": shape_world.BASE_SHAPES, "colour": tuple(shape_world.COLOURS)}
    judge = load_judge()
    save_sheet(out / f"{method}.png", {"before": before[:8], "after": after[:8]}, texts[:8])
    return {"before": judge(before, scenes[24:], words), "after": judge(after, scenes[24:], words)}


def purple_heart(rng: np.random.Generator) -> shape_world.Scene:
    """Return a scene of a purple heart on a light background."""
    background = str(rng.choice(["white", "yellow", "pink", "orange"]))
    positions, sizes = list(shape_world.POSITIONS), list(shape_world.SIZES)
    scene = shape_world.Scene(
        "heart", "purple", background, "solid", str(rng.choice(sizes)), str(rng.choice(positions))
    )
    return shape_world.jitter_scene(rng, scene)


def caption_with_word(scene: shape_world.Scene, word: str) -> str:
    """Return the caption with the new word for the purple heart."""
    return shape_world.scene_caption(scene, omit={"colour"}, replace_words={"heart": word})


def make_dataset(folder: Path, scenes: Sequence[shape_world.Scene], word: str) -> Path:
    """Write images with their captions."""
    records = []
    for number, scene in enumerate(scenes):
        image = shape_world.render_scene(scene)
        file = storage.save_image(folder / f"{number:02d}.png", image)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=checksums.sha256_file(file),
                content_hash=decode.pixel_hash(image),
                width=image.width,
                height=image.height,
                captions=(manifest.Caption(caption_with_word(scene, word), "world"),),
            )
        )
    manifest.save_manifest(folder, records)
    return folder


def save_sheet(file: Path, columns: dict[str, Sequence[Any]], heads: Sequence[str]) -> None:
    """Save a contact sheet with a row for each prompt and a column for each variant."""
    cells: list[list[Image.Image | None]] = [
        [column[row].image for column in columns.values()] for row in range(len(heads))
    ]
    sheet = reports.contact_sheet(cells, column_heads=list(columns), row_heads=list(heads), cell=64)
    storage.save_image(file, sheet)


BENCHMARKS: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "slider": (measure_slider, 40),
    "word": (lambda out, steps: measure_word("word", out, steps), 150),
    "text": (lambda out, steps: measure_word("text", out, steps), 120),
    "lokr": (lambda out, steps: measure_style("lokr", out, steps), 250),
    "dora": (lambda out, steps: measure_style("dora", out, steps), 250),
}


def passes(name: str, results: dict[str, Any]) -> bool:
    """Return True if a slider rises at every strength, and the others learn their concept."""
    if name == "slider":
        return all(list(row.values()) == sorted(row.values()) for row in results.values())
    names = ["style"] if name in ("dora", "lokr") else ["shape", "colour"]
    return all(results["after"][key] >= max(0.7, results["before"][key] + 0.3) for key in names)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.adapters")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--out", help="folder for runs and images (default: a temporary one)")
    parser.add_argument("--steps", type=int, help="training steps (default: depends on the benchmark)")
    arguments = parser.parse_args()
    all_pass = True
    with tempfile.TemporaryDirectory() as folder:
        out = Path(arguments.out or folder)
        for name in arguments.names or BENCHMARKS:
            measure, steps = BENCHMARKS[name]
            start = time.process_time()
            results = measure(out, arguments.steps or steps)
            all_pass = all_pass and passes(name, results)
            seconds = round(time.process_time() - start)
            print(json.dumps({name: results, "cpu_seconds": seconds}), flush=True)
    return 0 if all_pass else 1


if __name__ == "__main__":
    sys.exit(main())
