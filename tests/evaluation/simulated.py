"""Simulated evaluations: checkpoints with known quality, measured with noisy prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.data.prompts import Prompt
from lorakit.evaluation.copies import CopyScale, TrainingMatch
from lorakit.evaluation.quality import harmonic_mean, saturate
from lorakit.evaluation.references import ReferenceTable, ReferenceUnit
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores

BASE_FIDELITY, REFERENCE_FIDELITY, BASE_MARGIN, SHUFFLED = 0.40, 0.70, 0.10, 0.15
SEEDS = (0, 1, 2, 3)
CHANCE_COPIES = 0.005  # images that resemble a training image by chance
COPY, NO_COPY = TrainingMatch("3.png", 0.95, 0.99, 0.5, 0.4), TrainingMatch("1.png", 0.6, 0.3, 0.55, 0.2)
NUM_REFERENCES = 8


@dataclass(frozen=True)
class Truth:
    """A checkpoint's normalized scores and faults without noise."""

    step: int
    fidelity: float
    prompt_adherence: float
    copies: float = 0.0
    drift: float = 0.05
    diversity: float = 1.0

    @property
    def quality(self) -> float:
        """The score that the selection maximizes."""
        parts = [np.array([part]) for part in (self.fidelity, self.prompt_adherence)]
        values, _ = harmonic_mean([saturate(part) for part in parts])
        return float(values[0])


def make_references() -> ReferenceTable:
    """Return references that are alike to `REFERENCE_FIDELITY`, all of them trained on."""
    units = tuple(ReferenceUnit((f"{i}.png",), trained_on=True) for i in range(NUM_REFERENCES))
    similarity = np.full((NUM_REFERENCES, NUM_REFERENCES), REFERENCE_FIDELITY)
    np.fill_diagonal(similarity, 1)
    return ReferenceTable(units, similarity)


def make_prompts(subject: int = 24, unrelated: int = 24) -> list[Prompt]:
    """`subject` prompts with the trigger and `unrelated` ones without it."""
    texts = [(f"a sks dog {i}", f"a dog {i}") for i in range(subject)]
    prompts = [Prompt(f"s{i}", *pair, seeds=SEEDS, kind="view") for i, pair in enumerate(texts)]
    boats = [f"a boat {i}" for i in range(unrelated)]
    return prompts + [
        Prompt(f"o{i}", text, text, seeds=SEEDS, kind="unrelated") for i, text in enumerate(boats)
    ]


def simulate(
    truths: Sequence[Truth], *, seed: int = 0, noise: float = 1.0, subject: int = 24, unrelated: int = 24
) -> Evaluation:
    """Simulate measured scores.

    A prompt is easy or hard for all checkpoints alike, and each image has noise of its own; `noise` scales
    both.
    """
    rng = np.random.default_rng(seed)
    evaluation = Evaluation("simulated", make_prompts(subject, unrelated), [], fidelity_metric="dino_i")
    evaluation.references = make_references()
    evaluation.copy_scale = CopyScale(8, 0.6, 0.5)
    ease = {p.id: noise * rng.normal(0, 0.04, 2) for p in evaluation.prompts}
    for truth in [Truth(0, 0.0, 1.0, drift=0.0), *truths]:
        is_base = truth.step == 0
        name = BASE if is_base else f"step-{truth.step}"
        variant = VariantScores(name, truth.step or None, None if is_base else 1.0)
        scores: dict[str, dict[SampleKey, float]] = {}
        for prompt in evaluation.prompts:
            prompt_noise = noise * rng.normal(0, 0.02, 2)
            for s in SEEDS:
                key, image_noise = SampleKey(prompt.id, s), noise * rng.normal(0, 0.02, 3)
                fidelity = BASE_FIDELITY + truth.fidelity * (REFERENCE_FIDELITY - BASE_FIDELITY)
                clip_t = SHUFFLED + truth.prompt_adherence * BASE_MARGIN
                values = {
                    "dino_i": fidelity + ease[prompt.id][0] + prompt_noise[0] + image_noise[0],
                    "clip_t": clip_t + ease[prompt.id][1] + prompt_noise[1] + image_noise[1],
                    "clip_t_shuffled": SHUFFLED + ease[prompt.id][1],
                    "nearest_train_similarity": 0.95 if rng.random() < truth.copies + CHANCE_COPIES else 0.6,
                }
                if not is_base:
                    values["drift"] = max(0.0, truth.drift + image_noise[2])
                is_copy = values["nearest_train_similarity"] > 0.9
                variant.training_matches[key] = COPY if is_copy else NO_COPY
                variant.reference_similarity[key] = [values["dino_i"]] * NUM_REFERENCES
                for metric, value in values.items():
                    scores.setdefault(metric, {})[key] = float(value)
                variant.files[key] = f"{name}/{prompt.id}-{s}.png"
        variant.scores = scores
        diversity = truth.diversity * 0.3
        variant.per_prompt["diversity"] = {
            p.id: float(diversity + noise * rng.normal(0, 0.05)) for p in evaluation.prompts
        }
        evaluation.variants.append(variant)
    return evaluation


def overfitting_run(count: int = 10) -> list[Truth]:
    """A run that learns, reaches its best, and then copies and drifts while fidelity keeps rising."""
    truths = []
    for number in range(1, count + 1):
        share = number / count
        overfit = max(0.0, share - 0.55)
        truths.append(
            Truth(
                100 * number,
                fidelity=min(1.0, 0.2 + 1.1 * share),
                prompt_adherence=1.0 - 1.1 * overfit,
                copies=1.2 * overfit,
                drift=0.1 + 0.5 * overfit,
                diversity=1.0 - 0.5 * overfit,
            )
        )
    return truths
