"""Order of the images: the best prompts first, and of each prompt the most typical seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.data.prompts import Prompt, Role
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

MAX_LABELED = 4  # prompts that are called best, typical or weakest, at most
ROLES: tuple[Role, ...] = ("subject", "class", "unrelated")


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt with its best, typical or weakest images: `label` is one of these words, or empty."""

    prompt: Prompt
    label: str = ""


def rank_prompts(evaluation: Evaluation, variant: VariantScores) -> list[RankedPrompt]:
    """Return the prompts of the subject, then the others, by the variant's scores with the best first."""
    ranked: list[RankedPrompt] = []
    for role in ROLES:
        prompts = evaluation.prompts_of_role(role)
        scores = image_ranks(evaluation, variant, prompts)
        means = {prompt.id: _mean(scores, prompt) for prompt in prompts}
        ordered = sorted(prompts, key=lambda prompt: -means[prompt.id])
        labels = _labels(len(ordered)) if role == "subject" else [""] * len(ordered)
        ranked += [RankedPrompt(prompt, text) for prompt, text in zip(ordered, labels, strict=True)]
    return ranked


def typical_seeds(
    evaluation: Evaluation, variant: VariantScores, prompt: Prompt, count: int
) -> tuple[int, ...]:
    """Return the seeds of a prompt, at most `count`: those with scores nearest to the middle of them."""
    scores = image_ranks(evaluation, variant, [prompt])
    values = {seed: scores.get(SampleKey(prompt.id, seed), math.nan) for seed in prompt.seeds}
    known = [value for value in values.values() if math.isfinite(value)]
    middle = float(np.median(known)) if known else 0.0
    ordered = sorted(
        prompt.seeds, key=lambda seed: (not math.isfinite(values[seed]), abs(values[seed] - middle))
    )
    return tuple(sorted(ordered[:count]))


def image_ranks(
    evaluation: Evaluation, variant: VariantScores, prompts: Sequence[Prompt]
) -> dict[SampleKey, float]:
    """Return similarity to the references and CLIP-T together, each in standard deviations."""
    keys = [SampleKey(prompt.id, seed) for prompt in prompts for seed in prompt.seeds]
    is_subject = bool(prompts) and prompts[0].role(evaluation.triggers) == "subject"
    names = ["clip_t", evaluation.fidelity_metric] if is_subject else ["clip_t"]
    total: dict[SampleKey, float] = {}
    for name in names:
        scores = variant.scores.get(name, {})
        known = [key for key in keys if key in scores]
        if not known:
            continue
        values = np.array([scores[key] for key in known])
        for key, value in zip(known, (values - values.mean()) / (values.std() or 1.0), strict=True):
            total[key] = total.get(key, 0.0) + float(value)
    return total


def _mean(scores: dict[SampleKey, float], prompt: Prompt) -> float:
    values = [scores[key] for key in (SampleKey(prompt.id, seed) for seed in prompt.seeds) if key in scores]
    return float(np.mean(values)) if values else -math.inf


def _labels(count: int) -> list[str]:
    """Return the word for each of `count` ranks; few prompts have none."""
    size = min(MAX_LABELED, count // 4)
    labels = [""] * count
    if size:
        labels[:size] = ["best"] * size
        labels[count - size :] = ["weakest"] * size
        start = (count - size) // 2
        labels[start : start + size] = ["typical"] * size
    return labels
