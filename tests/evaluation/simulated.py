"""Evaluations made of numbers: checkpoints whose true quality is known, seen through noisy prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.data.prompts import Prompt
from lorakit.evaluation.metrics.feature_metrics import CopyLimit
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores

BASE_FIDELITY, CEILING, BASE_MARGIN, FLOOR = 0.40, 0.70, 0.10, 0.15
SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class Truth:
    """A checkpoint's shares of the controls, and its faults, as they are without noise."""

    step: int
    fidelity: float
    adherence: float
    copies: float = 0.0
    drift: float = 0.05
    diversity: float = 1.0

    @property
    def quality(self) -> float:
        """What the pick maximises."""
        return float(np.sqrt(np.clip(self.fidelity, 0, 1) * np.clip(self.adherence, 0, 1)))


def prompts(subject: int = 24, other: int = 24) -> list[Prompt]:
    made = [Prompt(f"s{i}", f"a sks dog {i}", f"a dog {i}", seeds=SEEDS, kind="view") for i in range(subject)]
    return made + [
        Prompt(f"o{i}", f"a boat {i}", f"a boat {i}", seeds=SEEDS, kind="unrelated") for i in range(other)
    ]


def evaluation(
    truths: Sequence[Truth], *, seed: int = 0, noise: float = 1.0, subject: int = 24, other: int = 24
) -> Evaluation:
    """What would be measured: prompts are easy or hard for all checkpoints alike, and each has noise of its
    own; `noise` scales both."""
    rng = np.random.default_rng(seed)
    made = Evaluation("simulated", prompts(subject, other), [], eye="dino_i")
    made.ceiling = [CEILING - 0.02, CEILING, CEILING + 0.02]
    made.limit = CopyLimit(0.85, 0.05)
    ease = {p.id: noise * rng.normal(0, 0.04, 2) for p in made.prompts}
    for truth in [Truth(0, 0.0, 1.0, drift=0.0), *truths]:
        base = truth.step == 0
        arm = VariantScores(BASE if base else f"step {truth.step}", truth.step or None, None if base else 1.0)
        scores: dict[str, dict[tuple[str, int], float]] = {}
        for prompt in made.prompts:
            own = noise * rng.normal(0, 0.02, 2)
            for s in SEEDS:
                key, shot = (prompt.id, s), noise * rng.normal(0, 0.02, 3)
                fidelity = BASE_FIDELITY + truth.fidelity * (CEILING - BASE_FIDELITY)
                clip = FLOOR + truth.adherence * BASE_MARGIN
                values = {
                    "dino_i": fidelity + ease[prompt.id][0] + own[0] + shot[0],
                    "clip_t": clip + ease[prompt.id][1] + own[1] + shot[1],
                    "shuffled": FLOOR + ease[prompt.id][1],
                    "nearest": 0.95 if rng.random() < truth.copies + 0.02 else 0.6,
                }
                if not base:
                    values["drift"] = max(0.0, truth.drift + shot[2])
                for name, value in values.items():
                    scores.setdefault(name, {})[key] = float(value)
                arm.files[key] = f"{arm.name}/{prompt.id}-{s}.png"
        arm.scores = scores
        spread = truth.diversity * 0.3
        arm.by_prompt["diversity"] = {p.id: float(spread + noise * rng.normal(0, 0.05)) for p in made.prompts}
        made.arms.append(arm)
    return made


def overfitting(count: int = 10) -> list[Truth]:
    """A run that learns, is at its best, and then copies and drifts while fidelity goes on rising."""
    truths = []
    for number in range(1, count + 1):
        share = number / count
        late = max(0.0, share - 0.55)
        truths.append(
            Truth(
                100 * number,
                fidelity=min(1.0, 0.2 + 1.1 * share),
                adherence=1.0 - 1.1 * late,
                copies=1.2 * late,
                drift=0.1 + 0.5 * late,
                diversity=1.0 - 0.5 * late,
            )
        )
    return truths
