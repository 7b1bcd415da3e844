"""What adapters beyond plain LoRA learn on the embedded bases, by the embedded CLIP; with a picture of each.

`python -m tests.benchmarks.adapters [dora] [lokr] [slider] [text] [word] --out DIR`

dora, lokr: the DiT has never seen anything striped; share of pictures of "striped" prompts in which CLIP
picks striped among five styles. slider: strengths from -1 to 1 between blue and red; CLIP's score for the red
caption less that for the blue one. text, word: purple hearts under a word without meaning, by the U-Net's
text encoder alone (the denoiser's learning rate is next to nothing) or by two vectors of their own; share in
which CLIP picks heart among six shapes and purple among eight colours. Two to four minutes each on a free
core.
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
from lorakit.core import storage
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
OPTIONS = SamplingOptions(steps=12, guidance=4.0, size=(64, 64), batch=16, quiet=True)
Judge = Callable[..., dict[str, float]]


def judge() -> Judge:
    """Shares of pictures in which the embedded CLIP picks the scene's own word, by attribute."""
    clip, tokenizer = clip_model.load_clip(base_model.EMBEDDED_CLIP)

    def shares(
        shots: Sequence[Any], scenes: Sequence[shape_world.Scene], words: dict[str, Any]
    ) -> dict[str, float]:
        pictures = np.stack([np.asarray(shot.image) for shot in shots])
        found = assess.clip_choices(clip, tokenizer, pictures, scenes, alternatives=words)
        return {name: round(float(right.mean()), 3) for name, right in found.items()}

    return shares


def style(kind: str, out: Path, steps: int) -> dict[str, Any]:
    """DoRA or LoKr: stripes."""
    data = embedded.dataset(out / "striped", 24, ordinary=24)
    # LoKr has few numbers: here a matrix of 4 x 4 and one of 32 x 32 for each layer
    own = (
        {"type": "dora", "rank": 16}
        if kind == "dora"
        else {"type": "lokr", "rank": 64, "alpha": 64, "factor": 4}
    )
    rate = 4e-3 if kind == "dora" else 1e-2
    tree = {"adapter": own, "optimizer": {"name": "adamw", "lr": rate, "schedule": "cosine"}}
    train = TRAIN | {"steps": steps}
    file = runs.make_recipe(out / f"{kind}.json", "tiny-dit", data, out / kind, **tree, train=train)
    run = runs.train(file)
    scenes = embedded.CONCEPT.scenes(16, seed=3)
    wanted = [Prompt(f"s{i}", shape_world.scene_caption(s), "", seeds=(0,)) for i, s in enumerate(scenes)]
    painter = SamplingPipeline("tiny-dit", run / "adapter.safetensors")
    after = painter.draw(wanted, OPTIONS, kind)
    with painter.without_adapter():
        before = painter.draw(wanted, OPTIONS, "base")
    ask = judge()
    words = {"style": shape_world.STYLES, "shape": shape_world.BASE_SHAPES}
    save(out / f"{kind}.png", {"base": before[:8], kind: after[:8]}, [p.prompt for p in wanted[:8]])
    return {"before": ask(before, scenes, words), "after": ask(after, scenes, words)}


def between(out: Path, steps: int) -> dict[str, Any]:
    """A slider from blue to red."""
    texts = {c: f"a {c} circle on a white background" for c in ("red", "blue")}
    tree = {
        "base": "tiny-unet",
        "out": str(out / "slider"),
        "resolution": 64,
        "slider": {
            "target": "a circle on a white background",
            "positive": texts["red"],
            "negative": texts["blue"],
            "guidance": 0.5,
        },
        "adapter": {"rank": 8, "alpha": 8},
        "optimizer": {"name": "adamw", "lr": 2e-3, "schedule": "cosine"},
        "train": TRAIN | {"steps": steps},
        "samples": {"steps": 12, "guidance": 4.0},
        "export": [],
    }
    file = storage.write_json(out / "slider.json", tree)
    slider.generate_slider_images(recipe.load_recipe(file))
    run = runs.train(file)
    painter = SamplingPipeline("tiny-unet", run / "adapter.safetensors")
    made: dict[str, Any] = {}
    rows: dict[float, list[Any]] = {}
    for shape in ("circle", "square"):  # the second was not trained
        wanted = [Prompt(shape, f"a {shape} on a white background", "", seeds=tuple(range(100, 112)))]
        made[shape] = {}
        for strength in STRENGTHS:
            painter.swap(run / "adapter.safetensors", strength)
            shots = painter.draw(wanted, OPTIONS, f"{shape} {strength:+g}")
            rows.setdefault(strength, []).extend(shots[:2])
            made[shape][f"{strength:+g}"] = lean(shots, shape)
    columns = {f"{strength:+g}": shots for strength, shots in rows.items()}
    save(out / "slider.png", columns, ["circle", "circle", "square", "square"])
    return made


def lean(shots: Sequence[Any], shape: str) -> float:
    """CLIP's mean score for red less that for blue."""
    scorer = clip_score.ClipScorer.local(base_model.EMBEDDED_CLIP)
    features = scorer.image_features([shot.image for shot in shots])
    red, blue = (
        scorer.clip_t(features, [f"a {colour} {shape} on a white background"] * len(shots)).mean()
        for colour in ("red", "blue")
    )
    return round(float(red - blue), 4)


def word(kind: str, out: Path, steps: int) -> dict[str, Any]:
    """Purple hearts under a new word."""
    rng = np.random.default_rng(5)
    scenes = [hearts(rng) for _ in range(40)]
    data = dataset(out / f"hearts-{kind}", scenes[:24], WORDS[kind])
    if kind == "text":
        own = {"rank": 16, "alpha": 16, "text_encoder": True, "text_encoder_lr": 2e-3}
        tree: dict[str, Any] = {"adapter": own, "optimizer": {"name": "adamw", "lr": 1e-7}}
    else:
        new = {"token": WORDS[kind], "init": "red circle", "vectors": 2, "lr": 2e-2}
        tree = {"adapter": {"type": "none"}, "embedding": new, "optimizer": {"name": "adamw"}}
    train = TRAIN | {"steps": steps}
    run = runs.train(
        runs.make_recipe(out / f"{kind}.json", "tiny-unet", data, out / kind, **tree, train=train)
    )
    painter = SamplingPipeline("tiny-unet", run / "adapter.safetensors")
    wanted = [Prompt(f"h{i}", said(s, WORDS[kind]), "", seeds=(0,)) for i, s in enumerate(scenes[24:])]
    after = painter.draw(wanted, OPTIONS, kind)
    with painter.without_adapter():
        before = painter.draw(wanted, OPTIONS, "base")
    words = {"shape": shape_world.BASE_SHAPES, "colour": tuple(shape_world.COLOURS)}
    ask = judge()
    save(out / f"{kind}.png", {"before": before[:8], "after": after[:8]}, [p.prompt for p in wanted[:8]])
    return {"before": ask(before, scenes[24:], words), "after": ask(after, scenes[24:], words)}


def hearts(rng: np.random.Generator) -> shape_world.Scene:
    """A purple heart somewhere on a light background."""
    paper = str(rng.choice(["white", "yellow", "pink", "orange"]))
    places, sizes = list(shape_world.POSITIONS), list(shape_world.SIZES)
    scene = shape_world.Scene(
        "heart", "purple", paper, "solid", str(rng.choice(sizes)), str(rng.choice(places))
    )
    return shape_world.jitter_scene(rng, scene)


def said(scene: shape_world.Scene, name: str) -> str:
    """The caption with the new word for the purple heart."""
    return shape_world.scene_caption(scene, drop={"colour"}, rename={"heart": name})


def dataset(folder: Path, scenes: Sequence[shape_world.Scene], name: str) -> Path:
    """Pictures with their captions."""
    records = []
    for number, scene in enumerate(scenes):
        picture = shape_world.render_scene(scene)
        file = storage.save_image(folder / f"{number:02d}.png", picture)
        records.append(
            manifest.Record(
                file=file.name,
                sha256=storage.sha256_file(file),
                pixels=decode.pixel_hash(picture),
                width=picture.width,
                height=picture.height,
                captions=(manifest.Caption(said(scene, name), "world"),),
            )
        )
    manifest.save_manifest(folder, records)
    return folder


def save(file: Path, columns: dict[str, Sequence[Any]], heads: Sequence[str]) -> None:
    """One picture: prompts down, arms across."""
    cells: list[list[Image.Image | None]] = [
        [column[row].image for column in columns.values()] for row in range(len(heads))
    ]
    sheet = reports.contact_sheet(cells, column_heads=list(columns), row_heads=list(heads), cell=64)
    storage.save_image(file, sheet)


MEASURES: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "slider": (between, 40),
    "word": (lambda out, steps: word("word", out, steps), 150),
    "text": (lambda out, steps: word("text", out, steps), 120),
    "lokr": (lambda out, steps: style("lokr", out, steps), 250),
    "dora": (lambda out, steps: style("dora", out, steps), 250),
}


def good(what: str, found: dict[str, Any]) -> bool:
    """A slider rises at every step; the others learn what the base does not know."""
    if what == "slider":
        return all(list(row.values()) == sorted(row.values()) for row in found.values())
    names = ["style"] if what in ("dora", "lokr") else ["shape", "colour"]
    return all(found["after"][name] >= max(0.7, found["before"][name] + 0.3) for name in names)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.adapters")
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(MEASURES)}; default: all")
    parser.add_argument("--out", help="keep runs and pictures here")
    parser.add_argument("--steps", type=int, help="instead of each one's own number")
    given = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        out = Path(given.out or folder)
        for what in given.what or MEASURES:
            measure, steps = MEASURES[what]
            began = time.process_time()
            found = measure(out, given.steps or steps)
            passed = passed and good(what, found)
            print(json.dumps({what: found, "cpu_seconds": round(time.process_time() - began)}), flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
