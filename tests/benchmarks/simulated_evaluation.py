"""An evaluation of checkpoints with known truth and all its scores, for benchmarks of the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorakit.data.prompts import Prompt
from lorakit.evaluation.copies import CopyScale, TrainingMatch
from lorakit.evaluation.prompt_scores import PromptScores
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.references import ReferenceTable, ReferenceUnit
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores
from tests.benchmarks.evaluation_population import Checkpoint, FloatArray, Population

MARGIN, SHUFFLED = 0.08, 0.14  # CLIP-T of the base model above that of shuffled prompts, and these
COPY = TrainingMatch("0.png", 0.96, 0.99, 0.6, 0.4)
BASE_TRUTH = Checkpoint(0.0, drift=0.0)


def sample_similarities(
    rng: np.random.Generator,
    population: Population,
    mixes: Sequence[float],
    *,
    references: int,
    prompts: int,
    seeds: int,
) -> tuple[FloatArray, FloatArray]:
    """Return similarities (V, G, S, U) of images to sampled references, the base model's first, and those of
    the references to each other (U, U).
    """
    order = rng.permutation(len(population.subject))
    own, scenes = population.subject[order[:references]], order[references : references + prompts]
    base, subject = population.base[scenes] @ own.T, population.subject[scenes] @ own.T  # (G, U)
    difficulty = 0.03 * rng.standard_t(5, (prompts, 1, 1))
    variants = []
    for mix in (0.0, *mixes):
        shares = np.full((prompts, seeds, 1), mix)
        if mix:
            shares += 0.06 * rng.standard_t(5, (prompts, 1, 1)) + 0.1 * rng.standard_t(5, (prompts, seeds, 1))
        noise = 0.02 * rng.standard_t(4, (prompts, seeds, 1))
        noise = noise + 0.01 * rng.standard_normal((prompts, seeds, references))
        variants.append(base[:, None] + shares * (subject - base)[:, None] + difficulty + noise)
    return np.stack(variants), own @ own.T


def sample_scores(
    rng: np.random.Generator,
    population: Population,
    mixes: Sequence[float],
    adherences: Sequence[float] | None = None,
    *,
    references: int,
    prompts: int,
    seeds: int,
) -> NormalizedScores:
    """Return the scores of checkpoints on prompts of one subject; without `adherences` only similarities."""
    similarities, pairs = sample_similarities(
        rng, population, mixes, references=references, prompts=prompts, seeds=seeds
    )
    margin = None
    if adherences is not None:
        followed = np.array([1.0, *adherences])[:, None] + np.zeros((len(adherences) + 1, prompts))
        followed[1:] += 0.05 * rng.standard_t(5, (len(adherences), prompts))
        noise = 0.015 * rng.standard_t(4, (len(followed), prompts, seeds))
        margin = MARGIN * followed + noise.mean(2)
    scores = PromptScores(similarities.mean(2), margin, ("sks",) * prompts, _table(pairs))
    return NormalizedScores.from_scores(scores, len(mixes))


def _table(pairs: FloatArray) -> ReferenceTable:
    return ReferenceTable(tuple(ReferenceUnit((f"{i}.png",), True) for i in range(len(pairs))), pairs)


def simulate_evaluation(
    rng: np.random.Generator,
    population: Population,
    truths: Sequence[Checkpoint],
    *,
    references: int = 12,
    prompts: int = 24,
    seeds: int = 4,
) -> Evaluation:
    """Return an evaluation of the base model and a checkpoint for each of `truths`."""
    similarities, pairs = sample_similarities(
        rng,
        population,
        [truth.mix for truth in truths],
        references=references,
        prompts=prompts,
        seeds=seeds,
    )
    own_seeds = tuple(range(seeds))
    subject = [Prompt(f"s{i}", f"a sks {i}", f"a star {i}", seeds=own_seeds) for i in range(prompts)]
    other = [
        Prompt(f"o{i}", f"a boat {i}", f"a boat {i}", seeds=own_seeds, kind="unrelated")
        for i in range(prompts // 2)
    ]
    evaluation = Evaluation("simulated", [*subject, *other], [], ("sks",))
    evaluation.references = _table(pairs)
    evaluation.copy_scale = CopyScale(references, 0.7, 0.4)
    ease = 0.03 * rng.standard_t(5, len(evaluation.prompts))
    for index, truth in enumerate([BASE_TRUTH, *truths]):
        name = BASE if index == 0 else f"step-{100 * index}"
        variant = VariantScores(name, 100 * index or None, 1.0 if index else None)
        _add_subject_scores(rng, variant, truth, similarities[index], subject, ease)
        _add_other_scores(rng, variant, truth, evaluation.prompts, other)
        evaluation.variants.append(variant)
    return evaluation


def _add_subject_scores(
    rng: np.random.Generator,
    variant: VariantScores,
    truth: Checkpoint,
    similarities: FloatArray,
    prompts: Sequence[Prompt],
    ease: FloatArray,
) -> None:
    names = ("clip_t", "clip_t_shuffled", "clip_i", "nearest_train_similarity")
    scores: dict[str, dict[SampleKey, float]] = {name: {} for name in names}
    for row, prompt in enumerate(prompts):
        followed = truth.adherence + (0.05 * rng.standard_t(5) if truth.mix else 0)
        copy_rate = truth.copies * rng.choice([0.2, 1.8])
        noise = 0.015 * rng.standard_t(4, len(prompt.seeds))
        for column, seed in enumerate(prompt.seeds):
            key = SampleKey(prompt.id, seed)
            is_copy = rng.random() < copy_rate
            variant.reference_similarity[key] = similarities[row, column].tolist()
            scores["clip_i"][key] = float(similarities[row, column].mean())
            scores["clip_t"][key] = SHUFFLED + ease[row] + MARGIN * followed + noise[column]
            scores["clip_t_shuffled"][key] = SHUFFLED + ease[row] + 0.3 * noise[column]
            nearest = 0.96 if is_copy else 0.6 + 0.05 * rng.random()
            scores["nearest_train_similarity"][key] = nearest
            agreement = 0.99 if is_copy else 0.3
            variant.training_matches[key] = TrainingMatch("0.png", nearest, agreement, 0.6, 0.2)
            variant.files[key] = f"{variant.name}/{prompt.id}-{seed}.png"
    variant.scores |= scores


def _add_other_scores(
    rng: np.random.Generator,
    variant: VariantScores,
    truth: Checkpoint,
    prompts: Sequence[Prompt],
    other: Sequence[Prompt],
) -> None:
    keys = [SampleKey(prompt.id, seed) for prompt in other for seed in prompt.seeds]
    for key in keys:
        variant.files[key] = f"{variant.name}/{key.prompt_id}-{key.seed}.png"
    if truth.mix:
        drift = truth.drift * rng.lognormal(0, 0.4, len(keys))
        variant.scores["drift"] = dict(zip(keys, drift.tolist(), strict=True))
        subject_keys = list(variant.reference_similarity)
        changes = (0.2 + truth.mix) * rng.lognormal(-1, 0.3, len(subject_keys))
        variant.scores["drift"] |= dict(zip(subject_keys, changes.tolist(), strict=True))
    if len(prompts[0].seeds) > 1:
        values = 0.3 * truth.diversity + 0.03 * rng.standard_t(5, len(prompts))
        variant.per_prompt["diversity"] = {p.id: float(v) for p, v in zip(prompts, values, strict=True)}
    variant.set_metrics["prompt_distance"] = 0.6
    losses = truth.validation_loss + 0.1 * np.random.default_rng(1).standard_normal(6)
    variant.losses["validation"] = (losses + 0.01 * rng.standard_normal(6)).tolist()


def without_prompts(evaluation: Evaluation, prompts: Sequence[Prompt]) -> Evaluation:
    """Return the evaluation with some of its prompts only, as after the first part of a race."""
    ids = {prompt.id for prompt in prompts}
    variants = []
    for variant in evaluation.variants:
        files = {key: file for key, file in variant.files.items() if key.prompt_id in ids}
        variants.append(replace(variant, files=files))
    return replace(evaluation, prompts=list(prompts), variants=variants)
