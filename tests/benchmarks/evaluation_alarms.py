"""The alarms of an evaluation on images whose truth is known: an ideal adapter, copies, other faults.

`python -m tests.benchmarks.evaluation_alarms [--repeats N] [--photos DIR]`. An ideal adapter generates fresh
true images that it was never trained on; no alarm may be red in 95 % of evaluations with 5 to 20 references,
also with one of them duplicated. Copies of a fifth of the images are re-encoded, cropped, mirrored or
brightened, and must be found in 90 %. About four minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from numpy.typing import NDArray

from lorakit.data.prompts import Prompt
from lorakit.evaluation import alarms
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.metrics import feature_metrics
from lorakit.evaluation.references import ReferenceUnits, reference_units
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores
from lorakit.evaluation.training_images import TrainingImages
from lorakit.training.held_out import automatic_count
from tests.benchmarks.evaluation_worlds import World, generated_features, shape_world_images

REFERENCES = (5, 8, 12, 20)
NUM_PROMPTS, SEEDS = 24, (0, 1, 2, 3)
NUM_OTHER = 8  # prompts without the subject
COPIED_SHARE = 0.2
MIN_IDEAL, MIN_COPIES = 0.95, 0.9
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """One evaluation: the references, and what its adapter does wrong."""

    world: World
    references: int
    duplicate: bool = False
    fault: str = "ideal"
    """`ideal`, `copies`, `overcooked` or `memorized`."""


def draw_evaluation(case: Case, rng: np.random.Generator) -> Evaluation:
    """Return the evaluation of an adapter, with references and prompts drawn from the world."""
    world = case.world
    chosen = rng.permutation(len(world.references))[: case.references]
    numbers = list(world.references[chosen])
    held_out = set(chosen[: automatic_count(case.references)].tolist())
    if case.duplicate:
        trained = [index for index in chosen.tolist() if index not in held_out]
        numbers.append(int(rng.choice(world.copies[trained[0]])))
    trained_on = [index not in held_out for index in chosen.tolist()] + [True] * case.duplicate
    scenes = rng.permutation(len(world.fresh))
    subject, other = scenes[:NUM_PROMPTS], scenes[NUM_PROMPTS : NUM_PROMPTS + NUM_OTHER]
    prompts = [Prompt(f"s{i}", f"a sks {i}", f"a {i}", seeds=SEEDS) for i in range(len(subject))]
    prompts += [Prompt(f"c{i}", f"a {i}", f"a {i}", seeds=SEEDS, kind="class") for i in range(len(other))]
    evaluation = Evaluation(case.fault, prompts, [], triggers=("sks",))
    measured = _set_references(evaluation, world, np.array(numbers), trained_on)
    renders = np.array([rng.permutation(world.fresh.shape[1])[: len(SEEDS)] for _ in scenes])
    base = np.concatenate([world.base[s][renders[s]] for s in (*subject, *other)])
    images = base.copy()
    source = world.overcooked if case.fault == "overcooked" else world.fresh
    own = len(subject) * len(SEEDS)
    images[:own] = np.concatenate([source[s][renders[s]] for s in subject])
    features = world.features[images].copy()
    trained_rows = [index for index, trained in zip(chosen, trained_on, strict=False) if trained]
    if case.fault == "copies":
        copied = rng.permutation(own)[: round(COPIED_SHARE * own)]
        images[copied] = [rng.choice(world.copies[index]) for index in rng.choice(trained_rows, len(copied))]
        features = world.features[images]
    if case.fault == "memorized":
        targets = world.features[world.references[rng.choice(trained_rows, own)]]
        features[:own] += targets
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    scenes_of = np.repeat(np.concatenate([subject, other]), len(SEEDS))
    for name, rows, vectors in ((BASE, base, world.features[base]), ("step-100", images, features)):
        _add_variant(evaluation, world, measured, name, rows, vectors, world.features[base], scenes_of)
    return evaluation


@dataclass(frozen=True)
class _References:
    features: NDArray[np.float64]
    units: ReferenceUnits
    training: TrainingImages


def _set_references(
    evaluation: Evaluation, world: World, numbers: Numbers, trained_on: Sequence[bool]
) -> _References:
    features, pixels = world.features[numbers], world.pixels.rows(numbers.tolist())
    names = [f"{index:02}.png" for index in range(len(numbers))]
    agreement = pixels.agreement(pixels).astype(np.float64)
    units = reference_units(features, names, trained_on, (), agreement)
    evaluation.references = units.table(features)
    evaluation.reference_statistics = pixels.statistics.tolist()
    rows = [row for row, trained in enumerate(trained_on) if trained]
    training = TrainingImages([names[row] for row in rows], features[rows], pixels.rows(rows))
    evaluation.copy_scale = training.scale
    return _References(features, units, training)


def _add_variant(
    evaluation: Evaluation,
    world: World,
    references: _References,
    name: str,
    rows: Numbers,
    features: NDArray[np.float64],
    base_features: NDArray[np.float64],
    scenes: Numbers,
) -> None:
    """Score the images as `measure.py` does."""
    keys = [SampleKey(prompt.id, seed) for prompt in evaluation.prompts for seed in prompt.seeds]
    variant = VariantScores(name, None if name == BASE else 100, None if name == BASE else 1.0)
    variant.files = {key: f"{name}/{key.prompt_id}-{key.seed}.png" for key in keys}
    similarity = references.units.similarity(features, references.features)
    variant.reference_similarity = dict(zip(keys, similarity.tolist(), strict=True))
    text = world.text_similarity[rows][:, scenes[:: len(SEEDS)]]
    own = np.repeat(np.arange(len(evaluation.prompts)), len(SEEDS))
    shuffled = feature_metrics.shuffled_prompt_similarity(text, own)
    columns = {
        "clip_i": similarity.mean(1),
        "clip_t": text[np.arange(len(own)), own],
        "clip_t_shuffled": shuffled,
    }
    if name != BASE:
        columns["drift"] = feature_metrics.drift(features, base_features)
    for metric, values in columns.items():
        variant.scores[metric] = dict(zip(keys, values.tolist(), strict=True))
    pixels = world.pixels.rows(rows.tolist())
    matches = references.training.compare(features, pixels)
    variant.training_matches = dict(zip(keys, matches, strict=True))
    variant.image_statistics = dict(zip(keys, pixels.statistics.tolist(), strict=True))
    groups = features.reshape(len(evaluation.prompts), len(SEEDS), -1)
    diversity = [feature_metrics.pairwise_diversity(group) for group in groups]
    variant.per_prompt["diversity"] = dict(
        zip([prompt.id for prompt in evaluation.prompts], diversity, strict=True)
    )
    variant.set_metrics["prompt_distance"] = feature_metrics.between_group_distance(features, own)
    evaluation.variants.append(variant)


def find_alarms(evaluation: Evaluation) -> list[Alarm]:
    """Return the alarms of the adapter."""
    limit = alarms.drift_limit(evaluation, None)
    return alarms.find_alarms(evaluation, evaluation.adapter_variants[0], limit)


EXPECTED = {"copies": "copied_images", "overcooked": "overcooked", "memorized": "memorization"}


def measure_case(case: Case, repeats: int) -> dict[str, Any]:
    """Return the share of evaluations without a red alarm, or with the expected one, and all alarms."""
    raised: Counter[str] = Counter()
    good = warned = 0
    for repeat in range(repeats):
        found = find_alarms(draw_evaluation(case, np.random.default_rng([repeat, case.references])))
        red = {alarm.name for alarm in found if alarm.level == "alarm"}
        raised.update(f"{alarm.name} ({alarm.level})" for alarm in found)
        good += not red if case.fault == "ideal" else EXPECTED[case.fault] in red
        warned += case.fault != "ideal" and EXPECTED[case.fault] in {alarm.name for alarm in found}
    return {
        "world": case.world.name,
        "fault": case.fault,
        "references": case.references,
        "duplicate": case.duplicate,
        "share": good / repeats,
        "with_warnings": warned / repeats,
        "raised": dict(raised.most_common()),
    }


def measure(repeats: int, worlds: Sequence[World] = ()) -> list[dict[str, Any]]:
    """Return the shares of all cases."""
    rows = []
    for world in worlds or (shape_world_images(), generated_features()):
        cases = [
            Case(world, references, duplicate, fault)
            for fault in ("ideal", "copies")
            for references in REFERENCES
            for duplicate in (False, True)
        ]
        cases += [Case(world, references, fault="overcooked") for references in REFERENCES]
        cases += [Case(world, references, fault="memorized") for references in REFERENCES[2:]]
        rows += [measure_case(case, repeats) for case in cases]
    return rows


def passes(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if ideal adapters pass and copies are found, in every case."""
    goals = {"ideal": MIN_IDEAL, "copies": MIN_COPIES}
    return all(row["share"] >= goals.get(row["fault"], 0) for row in rows)


def format_report(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the shares."""
    lines = [f"{'world':24} {'adapter':12} {'refs':>4} {'dup':>4} {'share':>6} {'warned':>7}  alarms"]
    for row in rows:
        raised = ", ".join(f"{name} {count}" for name, count in row["raised"].items())
        lines.append(
            f"{row['world']:24} {row['fault']:12} {row['references']:4} "
            f"{'yes' if row['duplicate'] else '':>4} {row['share']:6.2f} "
            f"{row['with_warnings']:7.2f}  {raised}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation_alarms")
    parser.add_argument("--repeats", type=int, default=40, help="evaluations of each case")
    parser.add_argument("--photos", type=Path, help="folder with a folder of photos for each subject")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = measure(arguments.repeats)
    print(json.dumps(rows, indent=2) if arguments.json else format_report(rows))
    good = passes(rows)
    if arguments.photos:
        from tests.benchmarks import evaluation_photos

        photos = evaluation_photos.measure(arguments.photos)
        print(json.dumps(photos, indent=2))
        good = good and evaluation_photos.passes(photos)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
