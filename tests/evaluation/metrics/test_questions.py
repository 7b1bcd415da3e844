"""Yes/no questions: the probability of the right answer, combined as in Soft-TIFA."""

from __future__ import annotations

import math
from typing import Any

import pytest
from PIL import Image

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.data.questions import Question
from lorakit.evaluation.metrics import questions, vqa
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from lorakit.evaluation.metrics.questions import QuestionScorer


class ColorModel:
    """Answers `Is it red?` by the red channel of the first pixel, and every other question with .5 and .3."""

    def yes_probability(self, image: Image.Image, question: str) -> float:
        return self.answer_probabilities(image, question)["yes"]

    def answer_probabilities(self, image: Image.Image, question: str) -> dict[Any, float]:
        assert question.endswith("Please answer yes or no.")
        if question.startswith("Is it red?"):
            red = image.getpixel((0, 0))[0] / 255
            return {"yes": red, "no": 1 - red}
        return {"yes": 0.5, "no": 0.3}

    def describe(self) -> dict[str, Any]:
        return {"model": "color"}


def prompt(*pairs: tuple[str, Any]) -> Prompt:
    return Prompt("p", "x", "x", questions=tuple(Question(text, answer) for text, answer in pairs))


@pytest.mark.parametrize(
    ("red", "pairs", "expected"),
    [
        (255, [("Is it red?", "yes")], [1.0]),
        (0, [("Is it red?", "no")], [1.0]),
        (0, [("Is it red?", "yes")], [0.0]),
        (51, [("Is it red?", "yes"), ("Is it round?", "yes"), ("Is it round, no?", "no")], [0.2, 0.5, 0.3]),
        (255, [], []),
    ],
)
def test_an_image_scores_the_geometric_mean_of_its_right_answers(red, pairs, expected):
    scorer = QuestionScorer(ColorModel())
    images, prompts = [Image.new("RGB", (4, 4), (red, 0, 0))], [prompt(*pairs)]
    assert scorer.score_parts(images, prompts)[0] == pytest.approx(expected)
    (score,) = scorer.score(images, prompts)
    if not expected:
        assert math.isnan(score)
    elif min(expected) == 0:
        assert 0 < score < 0.001  # one wrong answer is enough, and the image still differs from worse ones
    else:
        assert score == pytest.approx(math.prod(expected) ** (1 / len(expected)))


def test_answers_in_any_case_and_spacing_add_up():
    tokens = [("Yes", 0.4), (" yes", 0.1), ("YES", 0.05), ("No", 0.2), ("Yesterday", 0.1), ("n", 0.1)]
    assert vqa.sum_answers(tokens) == pytest.approx({"yes": 0.55, "no": 0.2})


def test_questions_need_a_model_that_is_named():
    with pytest.raises(ConfigError, match="need a model") as caught:
        load_prompt_scorer("questions")
    assert "--metric questions=" in str(caught.value)
    assert questions.QuestionScorer.name == "questions"
