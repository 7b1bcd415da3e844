"""Checkpoint selection on simulated evaluations with known truth: its regret, its ties, its intervals."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lorakit.evaluation import quality
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import MIN_PROMPTS_TO_SPLIT, PromptSplit, select_checkpoint, split_prompts
from tests.evaluation.simulated import Truth, make_prompts, overfitting_run, simulate


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(quality, "RESAMPLES", 400)


def highest_fidelity(evaluation: Evaluation) -> int:
    """The index of the variant with the highest fidelity on all prompts."""
    prompts = evaluation.prompts_of_role("subject")
    means = [evaluation.interval(v, "dino_i", prompts).mean for v in evaluation.adapter_variants]
    return int(np.argmax(means))


def subject_split(evaluation: Evaluation) -> PromptSplit:
    return split_prompts(evaluation.prompts_of_role("subject"))


def test_the_selection_lies_before_the_overfit_end_and_costs_little():
    """Twenty noisy evaluations of one run: alarms exclude the end, and the selected checkpoint is almost the
    best of the rest, while the highest fidelity is always at the overfit end."""
    truths = overfitting_run()
    regrets, steps, by_fidelity = [], [], []
    for seed in range(20):
        evaluation = simulate(truths, seed=seed)
        selection = select_checkpoint(evaluation)
        selected = next(t for t in truths if t.step == selection.variant.step)
        sound_names = {variant.name for variant in selection.without_alarms}
        sound = [t for t in truths if f"step-{t.step}" in sound_names]
        regrets.append(max(t.quality for t in sound) - selected.quality)
        steps.append(selected.step)
        by_fidelity.append(truths[highest_fidelity(evaluation)].step)
        assert {"step-900", "step-1000"} <= {c.variant.name for c in selection.candidates if c.alarms}
    assert np.mean(regrets) < 0.03
    assert max(regrets) < 0.12
    assert max(steps) <= 800
    assert min(by_fidelity) >= 800


def test_of_equal_checkpoints_the_earliest_is_selected_and_the_others_are_named():
    """From step 300 on nothing changes, so noise decides the best; the rule selects an early checkpoint."""
    truths = [
        Truth(100 * n, fidelity=0.7 if n >= 3 else 0.3 * n / 3, prompt_adherence=1.0) for n in range(1, 11)
    ]
    steps, best, ties = [], [], []
    for seed in range(20):
        evaluation = simulate(truths, seed=seed)
        selection = select_checkpoint(evaluation)
        steps.append(selection.variant.step)
        ties.append(len(selection.tied_with))
        variants = evaluation.adapter_variants
        scores = NormalizedScores(evaluation, variants, subject_split(evaluation).selecting)
        best.append(variants[int(scores.quality_estimate().point.argmax())].step)
        assert not {"step-100", "step-200"} & set(selection.tied_with)
    assert min(steps) >= 300
    assert np.mean(steps) < 450 < np.mean(best)
    assert np.mean(ties) > 5  # of seven


def test_the_selecting_prompts_overstate_quality_and_the_reporting_ones_do_not():
    """The winner's curse: of twenty equal checkpoints the best one looks better than it is."""
    truths = [Truth(10 * n, fidelity=0.6, prompt_adherence=0.7) for n in range(1, 21)]
    reported, promised = [], []
    for seed in range(20):
        evaluation = simulate(truths, seed=seed, unrelated=0)
        variants, split = evaluation.adapter_variants, subject_split(evaluation)
        point = NormalizedScores(evaluation, variants, split.selecting).quality_estimate().point
        promised.append(point.max())
        scores = NormalizedScores(evaluation, [variants[int(point.argmax())]], split.reporting)
        reported.append(float(scores.quality_estimate().point[0]))
    truth = math.sqrt(0.6 * 0.7)
    assert np.mean(promised) > truth + 0.02
    assert np.mean(reported) == pytest.approx(truth, abs=0.02)


def test_the_reported_intervals_cover_the_truth():
    """Fidelity and prompt adherence of the selected checkpoint on the reporting prompts: 90 to 98 % of the
    nominal 95 % intervals contain the truth."""
    truths = [Truth(100, 0.5, 0.8), Truth(200, 0.6, 0.7)]
    hits = []
    for seed in range(120):
        evaluation = simulate(truths, seed=seed, subject=48, unrelated=0)
        variants, split = evaluation.adapter_variants, subject_split(evaluation)
        estimate = NormalizedScores(evaluation, variants, split.selecting).quality_estimate()
        row = int(estimate.point.argmax())
        scores = NormalizedScores(evaluation, variants, split.reporting)
        for name in ("fidelity", "prompt_adherence"):
            interval = scores.interval(name, row)
            hits.append(interval.ci_low <= getattr(truths[row], name) <= interval.ci_high)
    assert 0.90 <= np.mean(hits) <= 0.98


def test_the_halves_have_the_same_kinds_and_do_not_depend_on_the_order():
    kinds = ["view", "style"] * 12
    prompts = [replace(p, kind=kind) for kind, p in zip(kinds, make_prompts(24, 0), strict=True)]
    split = split_prompts(prompts)
    assert not {p.id for p in split.selecting} & {p.id for p in split.reporting}
    assert len(split.selecting) == len(split.reporting) == 12
    for half in (split.selecting, split.reporting):
        assert sum(p.kind == "view" for p in half) == 6
    reversed_split = split_prompts(prompts[::-1])
    assert {p.id for p in reversed_split.selecting} == {p.id for p in split.selecting}
    few = prompts[: MIN_PROMPTS_TO_SPLIT - 1]
    assert split_prompts(few) == PromptSplit(few, few)


def test_fewer_than_24_prompts_are_marked_and_very_few_are_not_held_out():
    truths = [Truth(100, 0.7, 1.0)]
    assert not select_checkpoint(simulate(truths)).few_prompts
    twelve, four = (select_checkpoint(simulate(truths, subject=count)) for count in (12, 4))
    assert (twelve.few_prompts, twelve.held_out_prompts) == (True, True)
    assert (four.few_prompts, four.held_out_prompts) == (True, False)


def test_nothing_is_selected_when_every_variant_has_an_alarm():
    truths = [Truth(100, 0.9, 1.0, copies=0.8), Truth(200, 0.95, 1.0, copies=0.9)]
    selection = select_checkpoint(simulate(truths))
    assert selection.variant is None
    assert selection.reason == "every variant has an alarm"
    answer = selection.to_json()
    assert answer["selected"] is None
    assert set(answer["alarms"]) == {"step-100", "step-200"}
    (alarm,) = answer["alarms"]["step-100"]
    assert alarm["name"] == "copied_images"
    assert alarm["value"]["mean"] > alarm["threshold"]


def test_scores_beyond_an_anchor_are_no_merit():
    """An adapter that follows prompts better than the base model is not preferred for it."""
    evaluation = simulate([Truth(100, 0.8, 1.0), Truth(200, 0.5, 1.6)], noise=0.2)
    assert select_checkpoint(evaluation).variant.step == 100


def test_without_base_images_nothing_is_selected_and_without_references_there_is_no_fidelity():
    without_base = simulate([Truth(100, 0.8, 1.0)])
    without_base.variants = without_base.variants[1:]
    assert select_checkpoint(without_base).variant is None
    without_references = simulate([Truth(100, 0.8, 1.0)])
    without_references.references = None
    selection = select_checkpoint(without_references)
    assert selection.fidelity is None
    assert selection.prompt_adherence is not None


def test_the_answer_is_plain_json():
    selection = select_checkpoint(simulate(overfitting_run()))
    answer = json.loads(json.dumps(selection.to_json()))
    assert answer["selected"] == selection.variant.name
    assert 0 < answer["quality"]["ci_low"] < answer["quality"]["ci_high"]
    assert answer["max_drift"]["value"] > 0
