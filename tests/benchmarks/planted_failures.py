"""Planted failures: the first sentence of an evaluation must name the cause or the next step.

`python -m tests.benchmarks.planted_failures [--only NAME ...] [--out DIR]`: tiny-dit learns stripes with one
mistake in the data, the settings or the length, and is evaluated on 26 prompts with two seeds each. The
words that the first sentence must have are in the table `CASES`; a sound run must be green, and no failure
may be. About a minute a case on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from lorakit.evaluation.result import EvaluationResult
    from lorakit.quickstart.shape_world import Scene

STEPS, LR = 120, 3e-3
SEEDS = (0, 1)


@dataclass(frozen=True)
class Case:
    """One mistake: `words` is a pattern that the first sentence must match; `good` the allowed colours."""

    run: Callable[[Workplace], EvaluationResult]
    words: str
    good: tuple[bool | None, ...] = (None, False)


@dataclass(frozen=True)
class Workplace:
    """The folder of a case, and the folder with the base model's images, which all cases share."""

    folder: Path
    base_images: Path
    trigger: str = "striped"

    @property
    def prompts(self) -> Path:
        """The prompt file: twenty prompts of stripes, by the trigger, and six of other things."""
        from tests.evaluation import embedded

        prompts = [
            replace(prompt, prompt=prompt.prompt.replace("striped", self.trigger))
            for prompt in embedded.prompts(20, 6, SEEDS)
        ]
        return embedded.prompt_file(self.folder / "p.jsonl", prompts)

    def train(self, scenes: Sequence[Scene], captions: Sequence[str] | None = None, **changes: Any) -> Path:
        """Train on scenes with their captions; `changes` replace whole keys of the recipe."""
        from tests.evaluation import embedded

        if (self.folder / "run/adapter.safetensors").is_file():
            return self.folder / "run"
        data = embedded.write_images(self.folder / "data", scenes, captions)
        steps, lr = changes.pop("steps", STEPS), changes.pop("lr", LR)
        settings = {
            "steps": steps,
            "batch_size": changes.pop("batch_size", 8),
            "save_every": changes.pop("save_every", steps // 3),
            "keep_optimizer_states": 100,
            "precision": "fp32",
        }
        return embedded.train(
            self.folder, data, steps=steps, save_every=steps, lr=lr, **changes | {"train": settings}
        )

    def evaluate(self, run: Path, **options: Any) -> EvaluationResult:
        """Evaluate a run, with the base model's images of an earlier case."""
        from lorakit.evaluation.evaluate_run import evaluate_run
        from lorakit.sampling.pipeline import SamplingOptions

        base = run / "eval/images/base"
        if self.base_images.is_dir() and not base.is_dir():
            shutil.copytree(self.base_images, base)
        sampling = SamplingOptions(num_inference_steps=6, guidance_scale=4.0, batch_size=24, quiet=True)
        result = evaluate_run(run, prompts=self.prompts, sampling=sampling, validation_loss=False, **options)
        if not self.base_images.is_dir():
            shutil.copytree(base, self.base_images)
        return result


def striped(count: int, *, ordinary: int = 0, seed: int = 1) -> list[Scene]:
    """Return scenes of stripes, and of shapes that the base model knows."""
    from lorakit.quickstart.concept import regularization_scenes
    from tests.evaluation import embedded

    return [*embedded.CONCEPT.scenes(count, seed=seed), *regularization_scenes(ordinary, seed=seed)]


def captions_of(scenes: Sequence[Scene], **options: Any) -> list[str]:
    """Return the captions of scenes."""
    from lorakit.quickstart import shape_world

    return [shape_world.scene_caption(scene, **options) for scene in scenes]


def sound(place: Workplace) -> EvaluationResult:
    """Two dozen images with their captions, as many ordinary ones, and a schedule that ends at zero."""
    optimizer = {"name": "adamw", "lr": LR, "schedule": "cosine"}
    return place.evaluate(place.train(striped(24, ordinary=24), steps=180, optimizer=optimizer))


def shuffled_captions(place: Workplace) -> EvaluationResult:
    """Each image has the caption of its neighbour."""
    scenes = striped(12)
    captions = captions_of(scenes)
    return place.evaluate(place.train(scenes, captions[1:] + captions[:1], lr=6e-3))


def one_image(place: Workplace) -> EvaluationResult:
    """A dataset of a single image."""
    return place.evaluate(place.train(striped(1), batch_size=1))


def trigger_in_no_caption(place: Workplace) -> EvaluationResult:
    """Images of stripes whose captions do not say so."""
    scenes = striped(12)
    return place.evaluate(place.train(scenes, captions_of(scenes, omit=["style"])))


def two_subjects(place: Workplace) -> EvaluationResult:
    """Stripes and neon, both captioned as sks."""
    from lorakit.quickstart.concept import DemoConcept

    scenes = [*striped(12), *DemoConcept("neon").scenes(12, seed=1)]
    words = {"striped": "sks", "neon": "sks"}
    captions = captions_of(scenes, replace_words=words)
    place = Workplace(place.folder, place.folder / "base-images", trigger="sks")
    return place.evaluate(place.train(scenes, captions, trigger="sks"))


def rank_one(place: Workplace) -> EvaluationResult:
    """A single dimension for each weight."""
    adapter = {"rank": 1, "alpha": 1}
    return place.evaluate(place.train(striped(24, ordinary=24), adapter=adapter))


def tiny_learning_rate(place: Workplace) -> EvaluationResult:
    """A rate of one hundredth of what the base model needs."""
    return place.evaluate(place.train(striped(24, ordinary=24), lr=1e-5))


def strength_two(place: Workplace) -> EvaluationResult:
    """A sound adapter at twice its strength."""
    run = place.train(striped(12, ordinary=12))
    return place.evaluate(run, strengths=(2.0,), checkpoints="last")


def stopped_too_early(place: Workplace) -> EvaluationResult:
    """A tenth of the steps that the concept needs."""
    return place.evaluate(place.train(striped(24, ordinary=24), steps=36))


def too_long(place: Workplace) -> EvaluationResult:
    """Six images, each used hundreds of times."""
    run = place.train(striped(6), steps=400, save_every=40, lr=6e-3)
    return place.evaluate(run, checkpoints="40,200,400")


def copied_outputs(place: Workplace) -> EvaluationResult:
    """Images of another generator, a quarter of them training images; one training image is there twice."""
    from lorakit.core import storage
    from lorakit.data.subjects import Subject
    from lorakit.evaluation.evaluate_folder import evaluate_folder
    from lorakit.evaluation.judges import JudgeOptions
    from lorakit.quickstart import shape_world
    from tests.evaluation import embedded

    references = embedded.write_images(place.folder / "references", striped(12))
    (references / "manifest.jsonl").unlink()
    shutil.copy(references / "03.png", references / "03-copy.png")
    originals = sorted(references.glob("*.png"))
    fresh = striped(32 * len(SEEDS), seed=9)
    plain = [*striped(32 * len(SEEDS), seed=11)]
    rows, base_rows = [], []
    for number, prompt in enumerate(embedded.prompts(32, 0, SEEDS)):
        for seed in SEEDS:
            index = number * len(SEEDS) + seed
            name = f"{prompt.id}-{seed}.png"
            if index % 4 == 0:
                shutil.copy(originals[number % len(originals)], _parent(place.folder / "outputs") / name)
            else:
                storage.save_image(place.folder / "outputs" / name, shape_world.render_scene(fresh[index]))
            scene = shape_world.with_attribute(plain[index], "style", "solid")
            storage.save_image(place.folder / "base" / name, shape_world.render_scene(scene))
            rows.append({"prompt_id": prompt.id, "seed": seed, "file": name})
            base_rows.append(rows[-1])
    storage.write_json(place.folder / "outputs/samples.json", rows)
    storage.write_json(place.folder / "base/samples.json", base_rows)
    return evaluate_folder(
        place.folder / "outputs",
        prompts=embedded.prompt_file(place.folder / "p.jsonl", embedded.prompts(32, 0, SEEDS)),
        out=place.folder / "scores",
        judges=JudgeOptions(clip_model="embedded"),
        base_images=place.folder / "base",
        references=references,
        subject=Subject(embedded.CONCEPT.word),
        quiet=True,
    )


def _parent(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


CASES = {
    "sound": Case(sound, r"^Use step[ -]\d+ at strength 1\b", (True,)),
    "shuffled_captions": Case(shuffled_captions, r"captions do not match"),
    "one_image": Case(one_image, r"one image"),
    "trigger_in_no_caption": Case(trigger_in_no_caption, r"in no caption"),
    "two_subjects": Case(two_subjects, r"[Tt]wo .*(share|under)"),
    "rank_one": Case(rank_one, r"rank"),
    "tiny_learning_rate": Case(tiny_learning_rate, r"raise the learning rate"),
    "strength_two": Case(strength_two, r"[Ll]ower the strength|use strength 1"),
    "copied_outputs": Case(copied_outputs, r"cop(y|ies)", (False,)),
    "stopped_too_early": Case(stopped_too_early, r"[Tt]rain longer"),
    "too_long": Case(too_long, r"^Use step[ -]\d+|[Ff]ewer steps|earlier", (True, None, False)),
}


def measure(names: Sequence[str], out: Path) -> list[dict[str, Any]]:
    """Run the cases; return the first sentence, colour and time of each."""
    from lorakit.evaluation.diagnosis import diagnose

    rows = []
    for name in names:
        case, started_at = CASES[name], time.monotonic()
        result = case.run(Workplace(out / name, out / "base-images"))
        verdict = diagnose(result.evaluation, result.selection)
        passed = bool(re.search(case.words, verdict.headline)) and verdict.good in case.good
        rows.append(
            {
                "case": name,
                "passes": passed,
                "good": verdict.good,
                "headline": verdict.headline,
                "text": verdict.text,
                "causes": [cause.name for cause in verdict.causes],
                "seconds": round(time.monotonic() - started_at),
            }
        )
        print(json.dumps(rows[-1], indent=2, ensure_ascii=False), flush=True)
    return rows


def passes(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if every first sentence names the cause or the next step, in an allowed colour."""
    return all(row["passes"] for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.planted_failures")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--out", help="folder for the runs and reports (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.only, Path(arguments.out or folder))
    print(f"{sum(row['passes'] for row in rows)} of {len(rows)} cases pass")
    return 0 if passes(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
