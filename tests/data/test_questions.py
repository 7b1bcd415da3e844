"""Questions of a prompt file: read, checked with their line, and written again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorakit.core.errors import DataError
from lorakit.data.prompts import load_prompts, prompt_to_row
from lorakit.data.questions import MAX_QUESTIONS, Question
from lorakit.data.subjects import Subject


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def row(questions: object) -> str:
    return json.dumps({"prompt": "a sks dog", "questions": questions})


def test_questions_are_texts_or_objects_and_class_nouns_replace_triggers(tmp_path: Path) -> None:
    questions = ["Is there a sks dog?", {"question": "Is it  asleep?", "answer": "No"}]
    (prompt,) = load_prompts(write(tmp_path, "p.jsonl", row(questions)), [Subject("sks", "dog")])
    assert prompt.questions == (Question("Is there a dog?"), Question("Is it asleep?", "no"))


@pytest.mark.parametrize("answer", ["no", "No", "'no'", "false"])
def test_yaml_may_leave_the_answer_unquoted(answer: str, tmp_path: Path) -> None:
    second = f"- question: Any cat?\n      answer: {answer}"
    text = f"- prompt: a dog\n  questions:\n    - Is there a dog?\n    {second}\n"
    (prompt,) = load_prompts(write(tmp_path, "p.yaml", text))
    assert prompt.questions == (Question("Is there a dog?"), Question("Any cat?", "no"))


def test_a_prompt_set_with_questions_is_read_as_it_was_written(tmp_path: Path) -> None:
    questions = ["Is there a dog?", {"question": "Is there a cat?", "answer": "no"}]
    (prompt,) = load_prompts(write(tmp_path, "p.jsonl", row(questions)))
    assert prompt_to_row(prompt)["questions"] == questions
    (again,) = load_prompts(write(tmp_path, "q.jsonl", json.dumps(prompt_to_row(prompt))))
    assert again == prompt
    (plain,) = load_prompts(write(tmp_path, "r.jsonl", '{"prompt": "a dog"}'))
    assert plain.questions == ()
    assert "questions" not in prompt_to_row(plain)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ("Is there a dog?", "must be a list"),
        ([3], "a text or an object"),
        ([""], "question is empty"),
        ([{"answer": "no"}], "question is empty"),
        ([{"question": "Any dog?", "answer": "maybe"}], "must be yes or no"),
        ([{"question": "Any dog?", "answr": "no"}], "did you mean 'answer'"),
        (["Any dog?", "any dog?"], "repeated"),
        ([f"Is there thing {n}?" for n in range(MAX_QUESTIONS + 1)], f"at most {MAX_QUESTIONS}"),
    ],
)
def test_a_wrong_question_is_an_error_with_its_line(questions: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "p.jsonl", '{"prompt": "a cat"}\n' + row(questions))
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(path)
    assert "line 2" in str(caught.value)
