"""Fidelity, prompt adherence and quality: their scales, and intervals that include the references."""

from __future__ import annotations

import numpy as np
import pytest

from lorakit.evaluation.prompt_scores import PromptScores
from lorakit.evaluation.quality import NormalizedScores, harmonic_mean, saturate, saturation_slope
from lorakit.evaluation.references import ReferenceTable, ReferenceUnit
from tests.evaluation.simulated import Truth, simulate

PROMPTS, DIM = 16, 24


def clouds(rng: np.random.Generator, count: int, center: np.ndarray) -> np.ndarray:
    """Unit vectors around a center; as similar to each other as photos of one subject are."""
    vectors = center + rng.normal(0, 0.15, (count, DIM))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sample(rng: np.random.Generator, units: int, held_out: int = 0, subjects: int = 1) -> PromptScores:
    """Scores of true images beside those of a base model that knows nothing; each subject has references."""
    similarities, names, rows, references = [], [], [], []
    centers = [np.eye(DIM)[subject] for subject in range(subjects)]
    base_center = np.full(DIM, 0.05)
    triggers = [f"sks{subject}" if subjects > 1 else None for subject in range(subjects)]
    for subject, center in enumerate(centers):
        references.append(clouds(rng, units, center))
        names += [
            ReferenceUnit((f"{subject}-{i}.png",), i >= held_out, triggers[subject]) for i in range(units)
        ]
    features = np.concatenate(references)
    for index in range(PROMPTS):
        center = centers[index % subjects]
        images = np.concatenate([clouds(rng, 1, base_center), clouds(rng, 2, center)])
        similarities.append(images @ features.T)
        rows.append(triggers[index % subjects])
    return PromptScores(
        np.stack(similarities, 1), None, tuple(rows), ReferenceTable(tuple(names), features @ features.T)
    )


@pytest.mark.parametrize(
    ("units", "held_out", "subjects"), [(5, 0, 1), (12, 0, 1), (12, 3, 1), (6, 0, 2), (8, 4, 2)]
)
def test_true_images_have_a_fidelity_of_one_whatever_references_there_are(units, held_out, subjects):
    """Fresh true images: fidelity is 1 on average, and 92 to 99 % of the intervals contain it; also the
    difference of two such variants is 0. Few intervals are too wide to be stated."""
    rng = np.random.default_rng(units + held_out)
    values, hits, equal, known, runs = [], 0, 0, 0, 200
    for _ in range(runs):
        scores = NormalizedScores.from_scores(sample(rng, units, held_out, subjects), 2)
        interval, difference = scores.interval("fidelity", 0), scores.difference("fidelity", 0, 1)
        values.append(scores.fidelity[0])
        known += interval.is_known
        hits += interval.ci_low <= 1 <= interval.ci_high
        equal += difference.ci_low <= 0 <= difference.ci_high
    assert np.mean(values) == pytest.approx(1, abs=0.04)
    assert known > 0.8 * runs
    assert 0.92 <= hits / known <= 0.995
    assert 0.91 <= equal / runs <= 0.995


def test_fewer_references_make_the_interval_wider():
    rng = np.random.default_rng(1)
    widths = []
    for units in (5, 24):
        intervals = [
            NormalizedScores.from_scores(sample(rng, units), 2).interval("fidelity", 0) for _ in "123"
        ]
        widths.append(np.mean([one.ci_high - one.ci_low for one in intervals]))
    assert widths[0] > 1.5 * widths[1]


@pytest.mark.parametrize(("units", "number"), [(1, "only one reference image"), (2, "only 2 different")])
def test_too_few_references_leave_fidelity_unknown_and_still_select(units, number):
    scores = NormalizedScores.from_scores(sample(np.random.default_rng(0), units), 2)
    interval = scores.interval("fidelity", 0)
    assert number in interval.unknown_reason
    assert interval.num_prompts == PROMPTS
    assert scores.anchors.has_fidelity is (units == 2)


def test_references_like_the_base_models_images_leave_fidelity_unknown():
    evaluation = simulate([Truth(100, 0.5, 1.0)])
    similarity = evaluation.references.similarity
    similarity[:] = 0.40
    np.fill_diagonal(similarity, 1)
    scores = NormalizedScores(evaluation, evaluation.adapter_variants, evaluation.prompts_of_role("subject"))
    assert not scores.anchors.has_fidelity
    interval = scores.interval("fidelity", 0)
    assert not interval.is_known
    assert "not clearly more similar" in interval.unknown_reason


def test_an_interval_wider_than_the_scale_is_unknown():
    evaluation = simulate([Truth(100, 0.5, 1.0)], noise=12, subject=6, seed=3)
    scores = NormalizedScores(evaluation, evaluation.adapter_variants, evaluation.prompts_of_role("subject"))
    for name in ("fidelity", "prompt_adherence"):
        interval = scores.interval(name, 0)
        assert not interval.is_known
        assert np.isnan(interval.mean)


def test_anchors_are_raw_scores_and_values_lie_between_them():
    evaluation = simulate([Truth(100, 0.5, 0.8)], noise=0.01)
    scores = NormalizedScores(evaluation, evaluation.adapter_variants, evaluation.prompts_of_role("subject"))
    assert scores.anchors.base_fidelity == pytest.approx(0.40, abs=0.01)
    assert scores.anchors.reference_fidelity == pytest.approx(0.70, abs=0.01)
    assert scores.anchors.base_adherence_margin == pytest.approx(0.10, abs=0.01)
    assert scores.fidelity[0] == pytest.approx(0.5, abs=0.02)
    assert scores.prompt_adherence[0] == pytest.approx(0.8, abs=0.02)
    assert scores.quality.values[0] == pytest.approx(2 * 0.5 * 0.8 / 1.3, abs=0.02)


def test_without_prompts_or_base_nothing_is_measured():
    evaluation = simulate([Truth(100, 0.5, 1.0)])
    variants = evaluation.adapter_variants
    empty = NormalizedScores(evaluation, variants, [])
    assert empty.interval("fidelity", 0) is None
    assert empty.interval("quality", 0) is None
    evaluation.variants = variants
    without_base = NormalizedScores(evaluation, variants, evaluation.prompts)
    assert without_base.interval("prompt_adherence", 0) is None
    assert without_base.difference("fidelity", 0, 0) is None


def test_one_prompt_has_figures_without_intervals():
    evaluation = simulate([Truth(100, 0.5, 1.0)], subject=1, noise=0.1)
    scores = NormalizedScores(evaluation, evaluation.adapter_variants, evaluation.prompts_of_role("subject"))
    interval = scores.interval("fidelity", 0)
    assert interval.mean == pytest.approx(0.5, abs=0.1)
    assert np.isnan(interval.ci_low)
    assert interval.is_known


def test_merit_saturates_smoothly_around_the_upper_anchor():
    values = np.linspace(-0.5, 2, 251)
    bent = saturate(values)
    assert bent[values <= 0.8] == pytest.approx(values[values <= 0.8])
    assert bent[values >= 1.2] == pytest.approx(np.ones((values >= 1.2).sum()))
    assert (np.diff(bent) >= -1e-12).all()
    assert np.gradient(bent, values)[1:-1] == pytest.approx(saturation_slope(values)[1:-1], abs=0.02)


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(1.0, 1.0, 1.0), (0.5, 1.0, 2 / 3), (0.0, 1.0, 0.0), (-0.1, 1.0, -0.2)]
)
def test_quality_is_low_if_one_part_is(first, second, expected):
    values, slopes = harmonic_mean([np.array([first]), np.array([second])])
    assert values[0] == pytest.approx(expected)
    step = 1e-6
    moved, _ = harmonic_mean([np.array([first + step]), np.array([second])])
    assert (moved[0] - values[0]) / step == pytest.approx(slopes[0][0], abs=1e-4)


def test_the_interval_of_quality_covers_it_and_its_mean_is_not_biased_by_noise():
    truth = Truth(100, 0.6, 0.7)
    hits, values = 0, []
    for seed in range(80):
        evaluation = simulate([truth], seed=seed, subject=12, unrelated=0)
        prompts = evaluation.prompts_of_role("subject")
        interval = NormalizedScores(evaluation, evaluation.adapter_variants, prompts).interval("quality", 0)
        hits += interval.ci_low <= truth.quality <= interval.ci_high
        values.append(interval.mean)
    assert hits / 80 >= 0.9
    assert np.mean(values) == pytest.approx(truth.quality, abs=0.025)
