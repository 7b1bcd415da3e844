"""Sentences on win rates over the base model, and on the questions whose right answers are the rarest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorakit.data.prompts import Prompt, Role
from lorakit.data.questions import Question
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report.number_format import format_count, format_percent, format_percent_interval
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.win_rates import win_rates

MAX_QUESTIONS = 3  # in the sentence on failing questions
FAILING = 0.5  # mean probability of the right answer below which a question fails


@dataclass(frozen=True)
class QuestionScore:
    """The mean probability of the right answer to a question over the seeds of its prompt."""

    prompt: Prompt
    question: Question
    probability: float
    base_probability: float | None


def question_scores(evaluation: Evaluation, variant: VariantScores) -> list[QuestionScore]:
    """Return every question with its score, and that of the base model's images; the worst first."""
    rows = []
    for prompt in evaluation.prompts:
        own, base = (_question_means(one, prompt) for one in (variant, evaluation.base))
        if own is None:
            continue
        for index, question in enumerate(prompt.questions):
            before = None if base is None else base[index]
            rows.append(QuestionScore(prompt, question, own[index], before))
    return sorted(rows, key=lambda row: row.probability)


def question_notes(evaluation: Evaluation, variant: VariantScores) -> list[str]:
    """Return a sentence on the questions that fail most, if any does."""
    rows = question_scores(evaluation, variant)
    failing = [row for row in rows if row.probability < FAILING]
    if not failing:
        return []
    worst = "; ".join(_question_text(row) for row in failing[:MAX_QUESTIONS])
    verb = "fails" if len(failing) == 1 else "fail"
    return [f"{len(failing)} of {format_count(len(rows), 'question')} {verb}, most of all: {worst}."]


def win_rate_notes(evaluation: Evaluation, variant: VariantScores, labels: dict[Role, str]) -> list[str]:
    """Return a sentence for each metric and role with wins over the base model."""
    notes = []
    for rate in win_rates(evaluation, variant):
        title, share = metric_spec(rate.metric).title, format_percent_interval(rate.share)
        certainty = {True: "beyond chance", False: "beyond chance", None: "no preference beyond chance"}
        notes.append(
            f"{title} prefers its image to the base model's in {share} of"
            f" {format_count(rate.num_pairs, 'pair')} on {labels[rate.role]}: {certainty[rate.is_better]}."
        )
    return notes


def _question_means(variant: VariantScores | None, prompt: Prompt) -> list[float] | None:
    if variant is None or not prompt.questions:
        return None
    keys = [SampleKey(prompt.id, seed) for seed in prompt.seeds]
    rows = [variant.question_scores[key] for key in keys if key in variant.question_scores]
    means: list[float] = np.mean(rows, axis=0).tolist() if rows else []
    return means if len(means) == len(prompt.questions) else None


def _question_text(row: QuestionScore) -> str:
    answer = "" if row.question.answer == "yes" else " (no is right)"
    base = "" if row.base_probability is None else f", base model {format_percent(row.base_probability)}"
    return f"“{row.question.text}”{answer} {format_percent(row.probability)}{base}"
