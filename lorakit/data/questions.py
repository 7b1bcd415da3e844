"""Questions about an image that are answered with yes or no, as in the key `questions` of a prompt file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from lorakit.core.errors import DataError
from lorakit.core.nearest import did_you_mean

Answer = Literal["yes", "no"]
ANSWERS: tuple[Answer, ...] = ("yes", "no")
MAX_QUESTIONS = 50  # of one prompt; each costs a pass of the model for every image
_KEYS = ("question", "answer")


@dataclass(frozen=True)
class Question:
    """A question, and its right answer for an image that shows the prompt."""

    text: str
    answer: Answer = "yes"


def parse_questions(value: Any, where: str) -> tuple[Question, ...]:
    """Return the questions of a row: each a text, or an object with `question` and `answer`.

    Raises DataError for anything else, an empty or a repeated question.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_QUESTIONS:
        remedy = 'write ["Is there a dog?", {"question": "Is there a cat?", "answer": "no"}]'
        message = f"questions must be a list of at most {MAX_QUESTIONS}"
        raise DataError(message, where=where, remedy=remedy)
    questions = tuple(_question(entry, f"{where}, question {n}") for n, entry in enumerate(value, 1))
    texts = [question.text.casefold() for question in questions]
    for number, text in enumerate(texts, 1):
        if text in texts[: number - 1]:
            raise DataError("the question is repeated", where=f"{where}, question {number}")
    return questions


def question_to_json(question: Question) -> str | dict[str, str]:
    """Return a question as it stands in a prompt file; an object only if the right answer is no."""
    if question.answer == "yes":
        return question.text
    return {"question": question.text, "answer": question.answer}


def _question(entry: Any, where: str) -> Question:
    if isinstance(entry, str):
        entry = {"question": entry}
    if not isinstance(entry, dict):
        raise DataError(
            f"a question must be a text or an object, got {entry!r}",
            where=where,
            remedy='write "Is there a dog?" or {"question": "Is there a dog?", "answer": "no"}',
        )
    for key in entry:
        if key not in _KEYS:
            meant = did_you_mean(str(key), _KEYS)
            raise DataError(f"unknown key {key!r}{meant}", where=where, remedy="known keys: question, answer")
    text, answer = entry.get("question"), entry.get("answer", "yes")
    if not isinstance(text, str) or not text.strip():
        raise DataError("the question is empty or not a text", where=where)
    if isinstance(answer, bool):  # YAML reads an unquoted yes or no as a truth value
        answer = "yes" if answer else "no"
    if not isinstance(answer, str) or answer.strip().casefold() not in ANSWERS:
        raise DataError(f"the answer must be yes or no, got {answer!r}", where=where)
    return Question(" ".join(text.split()), cast(Answer, answer.strip().casefold()))
