"""Yes/no questions of the prompts, answered by a vision-language model: Soft-TIFA of Kamath et al.
(GenEval 2, arXiv:2512.16853).

A question's soft score is the probability of its right answer. The geometric mean over the questions of a
prompt estimates that all of them are right, and is the image's score; their arithmetic mean is the paper's
estimate for single questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.data.questions import MAX_QUESTIONS
from lorakit.evaluation.metrics.vqa import YesNoModel, load_vqa_model

if TYPE_CHECKING:
    from PIL import Image

INSTRUCTION = "{question} Please answer yes or no."
_OPTION = "--metric questions"
_LEAST = 1e-4  # a probability of zero would make one question decide the geometric mean alone


class QuestionScorer:
    """The geometric mean of the right answers' probabilities; NaN for a prompt without questions."""

    name = "questions"
    max_parts = MAX_QUESTIONS

    def __init__(self, model: YesNoModel) -> None:
        self.model = model

    @classmethod
    def load(cls, model: str | None, device: str) -> QuestionScorer:
        """Load a transformers model (hub id or folder), or connect to a server: its address with #MODEL."""
        if not model:
            remedy = f"{_OPTION}=HUB-ID, =FOLDER, or =http://127.0.0.1:8000/v1#MODEL"
            raise ConfigError("questions need a model that answers them", where=_OPTION, remedy=remedy)
        return cls(load_vqa_model(model, device))

    def score_parts(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[list[float]]:
        """Return for each image the probability of the right answer to each of its prompt's questions."""
        return [
            [
                self.model.answer_probabilities(rgb, INSTRUCTION.format(question=q.text))[q.answer]
                for q in prompt.questions
            ]
            for rgb, prompt in zip((image.convert("RGB") for image in images), prompts, strict=True)
        ]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[float]:
        """Return one score from 0 to 1 for each image (N,)."""
        return [combine(row) for row in self.score_parts(images, prompts)]

    def describe(self) -> dict[str, Any]:
        """Return the settings that the scores depend on, as JSON."""
        metric = f"Soft-TIFA GM: geometric mean of P(right answer) to {INSTRUCTION!r}"
        return {"metric": metric, **self.model.describe()}


def combine(probabilities: Sequence[float]) -> float:
    """Return the geometric mean; NaN for no questions."""
    if not probabilities:
        return math.nan
    return math.exp(sum(math.log(max(p, _LEAST)) for p in probabilities) / len(probabilities))
