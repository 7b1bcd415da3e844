"""Sentences on win rates and on questions that fail, with the base model beside them."""

from __future__ import annotations

from lorakit.data.prompts import Prompt
from lorakit.data.questions import Question
from lorakit.evaluation.report.judge_texts import question_notes, question_scores, win_rate_notes
from lorakit.evaluation.report.verdict import ROLE_LABELS
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores

HAT = Prompt(
    "hat", "a sks dog in a hat", "a dog in a hat", seeds=(0, 1),
    questions=(Question("Is there a dog?"), Question("Does the dog wear a hat?")),
)  # fmt: skip
FIELD = Prompt(
    "field", "a field", "a field", seeds=(0, 1), kind="unrelated",
    questions=(Question("Is there a dog?", "no"),),
)  # fmt: skip


def variant(name: str, hat: list[list[float]], field: list[list[float]], score: float) -> VariantScores:
    keys = [SampleKey(prompt.id, seed) for prompt in (HAT, FIELD) for seed in (0, 1)]
    scores = {"pickscore": {key: score + (key.prompt_id == "field") * (name == BASE) for key in keys}}
    return VariantScores(name, scores=scores, question_scores=dict(zip(keys, [*hat, *field], strict=True)))


def table() -> Evaluation:
    base = variant(BASE, [[0.9, 0.8], [0.9, 0.6]], [[0.95], [0.95]], 20.0)
    own = variant("step-9", [[0.9, 0.2], [0.7, 0.0]], [[0.3], [0.5]], 20.5)
    return Evaluation("e", [HAT, FIELD], [base, own], triggers=("sks",))


def test_questions_are_ordered_by_the_probability_of_their_right_answer():
    evaluation = table()
    rows = question_scores(evaluation, evaluation.variants[1])
    assert [(row.prompt.id, row.question.text) for row in rows] == [
        ("hat", "Does the dog wear a hat?"),
        ("field", "Is there a dog?"),
        ("hat", "Is there a dog?"),
    ]
    assert [round(row.probability, 2) for row in rows] == [0.1, 0.4, 0.8]
    assert [round(row.base_probability or 0, 2) for row in rows] == [0.7, 0.95, 0.9]


def test_a_sentence_names_the_questions_that_fail():
    evaluation = table()
    (note,) = question_notes(evaluation, evaluation.variants[1])
    assert note == (
        "2 of 3 questions fail, most of all: “Does the dog wear a hat?” 10 %, base model 70 %; "
        "“Is there a dog?” (no is right) 40 %, base model 95 %."
    )
    assert question_notes(evaluation, evaluation.variants[0]) == []
    evaluation.variants[1].question_scores = {}
    assert question_notes(evaluation, evaluation.variants[1]) == []


def test_a_sentence_for_each_role_says_how_often_the_images_win():
    evaluation = table()
    notes = win_rate_notes(evaluation, evaluation.variants[1], ROLE_LABELS)
    assert notes[0].startswith("PickScore prefers its image to the base model's in 100 %")
    assert "2 pairs on prompts of the subject" in notes[0]
    assert "in 0 %" in notes[1]
    assert "unrelated prompts: no preference beyond chance" in notes[1]
