"""Each metric is compared with an independent computation of its definition or with a closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lorakit.evaluation.metrics import feature_metrics


def unit(rows: int, columns: int, seed: int = 0, mean: float = 0.0) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).normal(mean, 1, (rows, columns))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


IMAGES, REFERENCES = unit(7, 5, 1), unit(4, 5, 2, 0.5)


def test_fidelity_is_the_mean_over_all_pairs():
    values = feature_metrics.fidelity(IMAGES, REFERENCES)
    assert values == pytest.approx([np.mean([cosine(p, r) for r in REFERENCES]) for p in IMAGES])
    assert values.mean() == pytest.approx(
        np.mean([cosine(p, r) for p, r in itertools.product(IMAGES, REFERENCES)])
    )


def test_drift_is_zero_for_the_same_and_two_for_the_opposite():
    assert feature_metrics.drift(IMAGES, IMAGES) == pytest.approx(np.zeros(7))
    assert feature_metrics.drift(IMAGES, -IMAGES) == pytest.approx(np.full(7, 2.0))
    other = unit(7, 5, 9)
    assert feature_metrics.drift(IMAGES, other)[3] == pytest.approx(1 - cosine(IMAGES[3], other[3]))


def test_diversity_is_one_minus_the_mean_over_pairs():
    expected = 1 - np.mean([cosine(a, b) for a, b in itertools.combinations(IMAGES, 2)])
    assert feature_metrics.pairwise_diversity(IMAGES) == pytest.approx(expected)
    assert feature_metrics.pairwise_diversity(np.eye(4)) == pytest.approx(1.0)
    assert feature_metrics.pairwise_diversity(np.repeat(IMAGES[:1], 3, 0)) == pytest.approx(0.0)
    assert math.isnan(feature_metrics.pairwise_diversity(IMAGES[:1]))


def test_the_distance_of_groups_uses_only_pairs_of_different_groups():
    groups = np.array([0, 0, 1, 1, 1, 2, 2])
    pairs = [(i, j) for i, j in itertools.combinations(range(7), 2) if groups[i] != groups[j]]
    expected = 1 - np.mean([cosine(IMAGES[i], IMAGES[j]) for i, j in pairs])
    assert feature_metrics.between_group_distance(IMAGES, groups) == pytest.approx(expected)
    assert math.isnan(feature_metrics.between_group_distance(IMAGES, np.zeros(7, int)))


@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (3, 9)])
def test_vendi_is_the_exponential_of_the_entropy_of_all_eigenvalues(rows, columns):
    images = unit(rows, columns, 3)
    values = np.linalg.eigvals(images @ images.T / rows).real
    expected = math.exp(-sum(v * math.log(v) for v in values if v > 1e-12))
    assert feature_metrics.vendi_score(images) == pytest.approx(expected, rel=1e-9)


def test_vendi_is_the_number_of_different_images():
    assert feature_metrics.vendi_score(np.eye(6)) == pytest.approx(6)
    assert feature_metrics.vendi_score(np.repeat(np.eye(6)[:2], 5, 0)) == pytest.approx(2)


def test_cmmd_equals_its_sums_and_its_closed_form():
    def kernel(a, b):
        return math.exp(-sum((a - b) ** 2) / (2 * 10.0**2))

    def mean(left, right):
        return np.mean([kernel(a, b) for a in left for b in right])

    expected = 1000 * (mean(IMAGES, IMAGES) + mean(REFERENCES, REFERENCES) - 2 * mean(IMAGES, REFERENCES))
    assert feature_metrics.cmmd(IMAGES, REFERENCES) == pytest.approx(expected, rel=1e-9)
    assert feature_metrics.cmmd(IMAGES, IMAGES) == pytest.approx(0.0, abs=1e-9)
    one, other = np.eye(2)[:1], np.eye(2)[1:]  # a distance of sqrt 2
    assert feature_metrics.cmmd(one, other) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)))


def test_clipscore_is_cut_at_zero():
    assert feature_metrics.clipscore(np.array([0.3, -0.1])) == pytest.approx([0.75, 0.0])


def test_the_similarity_to_shuffled_prompts_excludes_the_own_text():
    similarity = np.random.default_rng(4).normal(size=(5, 3))
    own = np.array([0, 0, 1, 2, 2])
    expected = [np.mean([similarity[row, text] for text in range(3) if text != own[row]]) for row in range(5)]
    assert feature_metrics.shuffled_prompt_similarity(similarity, own) == pytest.approx(expected)
    assert np.isnan(feature_metrics.shuffled_prompt_similarity(similarity[:, :1], np.zeros(5, int))).all()
