"""The metrics of two variants are judged together, at one level for the family."""

from __future__ import annotations

import math

from lorakit.evaluation.comparison import metric_differences
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report.number_format import format_interval, format_percent_interval
from lorakit.evaluation.report.verdict import comparison_summary
from lorakit.evaluation.select import Interval
from tests.evaluation.simulated import Truth, simulate


def test_a_large_difference_is_named_and_the_level_is_stated():
    evaluation = simulate([Truth(100, 0.3, 1.0), Truth(200, 0.8, 1.0)])
    first, second = evaluation.adapter_variants
    by_name = {d.name: d for d in metric_differences(evaluation, first, second, evaluation.prompts)}
    assert by_name["dino_i"].is_better is True
    assert by_name["clip_t"].is_better is None
    reverse = metric_differences(evaluation, second, first, evaluation.prompts)
    assert {d.name: d.is_better for d in reverse}["dino_i"] is False
    text = comparison_summary(evaluation, first, second).text
    assert "step-200 is better in DINO-I" in text
    assert "95 % for all" in text


def test_equal_variants_are_rarely_called_different():
    """Their metrics are four; by itself each would differ in one of twenty evaluations."""
    alone = together = 0
    for seed in range(40):
        evaluation = simulate(
            [Truth(100, 0.5, 0.9), Truth(200, 0.5, 0.9)], seed=seed, subject=12, unrelated=0
        )
        differences = metric_differences(evaluation, *evaluation.adapter_variants, evaluation.prompts)
        alone += any(d.interval.excludes_zero for d in differences if metric_spec(d.name).direction)
        together += any(d.is_better is not None for d in differences)
    assert together < alone
    assert together <= 5


def test_shares_of_equal_answers_have_a_width():
    evaluation = simulate([Truth(100, 0.5, 0.9)], subject=8, unrelated=0)
    for variant in evaluation.variants:
        variant.scores["clip_accuracy"] = dict.fromkeys(variant.scores["clip_t"], 1.0)
    base, variant = evaluation.variants
    own = evaluation.interval(variant, "clip_accuracy", evaluation.prompts)
    assert own.mean == own.ci_high == 1
    assert 0.7 < own.ci_low < 0.95
    difference = evaluation.paired_difference(base, variant, "clip_accuracy", evaluation.prompts)
    assert difference.ci_low < 0 < difference.ci_high


def test_unknown_figures_are_printed_with_their_reason():
    unknown = Interval.unknown("there is only one reference image", 24)
    expected = "cannot be determined (there is only one reference image)"
    assert format_percent_interval(unknown) == expected
    assert format_interval(unknown, metric_spec("clip_t")) == expected
    assert math.isnan(unknown.mean)
