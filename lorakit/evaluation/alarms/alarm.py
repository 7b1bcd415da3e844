"""An alarm with its grade: a warning near a limit, an alarm beyond it.

A figure beyond its limit is a warning. It is an alarm if chance does not explain it: if an interval at
the family-wise level, for all variants of the evaluation together, lies beyond the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorakit.core.statistics import Interval, Statistic, bootstrap
from lorakit.data.prompts import Prompt
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

FAMILY_ERROR = 0.05  # probability of a false alarm of one kind in all variants together
MAX_EXAMPLES = 5
FloatArray = NDArray[np.float64]

Level = Literal["warning", "alarm"]
"""A warning is near the limit, an alarm beyond it: red, and only beyond doubt."""
AlarmName = Literal[
    "copied_images",
    "memorization",
    "overfitting",
    "overcooked",
    "prompt_ignored",
    "low_diversity",
    "drift",
    "class_leakage",
    "no_effect",
]
ADVICE: dict[AlarmName, str] = {
    "copied_images": "train fewer steps, add training images, or use a lower strength",
    "memorization": "train fewer steps, add training images, or use a lower strength",
    "overfitting": "use an earlier checkpoint, or add training images",
    "overcooked": "use an earlier checkpoint, a lower strength, or a lower learning rate",
    "prompt_ignored": "check that each caption belongs to its image, or use a lower learning rate",
    "low_diversity": "train fewer steps or use a lower strength",
    "drift": "use a lower strength, or train with class images or output preservation",
    "class_leakage": "train with class images or output preservation, or train fewer steps",
    "no_effect": "train more steps or with a higher learning rate",
}


@dataclass(frozen=True)
class Alarm:
    """A fault of a variant: the measured `value` beyond its `threshold`; `examples` show it best."""

    name: AlarmName
    message: str
    value: Interval | None = None
    threshold: float | None = None
    examples: list[SampleKey] = field(default_factory=list)
    level: Level = "alarm"

    @property
    def title(self) -> str:
        """The name as a heading: `Copied images`."""
        return self.name.replace("_", " ").capitalize()

    @property
    def advice(self) -> str:
        """Steps that usually remove the fault."""
        return ADVICE[self.name]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `lorakit eval pick --json` and scores.json."""
        return {
            "name": self.name,
            "level": self.level,
            "message": self.message,
            "value": self.value.to_json() if self.value else None,
            "threshold": self.threshold,
            "examples": [list(key) for key in self.examples],
        }


@dataclass(frozen=True)
class Graded:
    """A figure with its 95 % interval and its grade; `level` is None within the limit."""

    value: Interval
    level: Level | None


def family_level(evaluation: Evaluation) -> float:
    """Return the level of an interval that holds for all variants of the evaluation together."""
    return 1 - FAMILY_ERROR / max(1, len(evaluation.adapter_variants))


def grade(
    evaluation: Evaluation,
    table: FloatArray,
    statistic: Statistic,
    limit: float,
    *,
    above: bool = True,
) -> Graded | None:
    """Grade a statistic of `table` (G, K), one row for each prompt, against the limit that it should not
    exceed, or not fall below; None without a prompt that was measured.
    """
    table = table[np.isfinite(table).all(1)]
    if not len(table):
        return None
    value = bootstrap(table, statistic)
    if np.isnan(value.mean) or not (value.mean > limit if above else value.mean < limit):
        return Graded(value, None)
    firm = bootstrap(table, statistic, level=family_level(evaluation))
    is_beyond = firm.ci_low > limit if above else firm.ci_high < limit
    return Graded(value, "alarm" if is_beyond else "warning")


def worst_examples(
    scores: dict[SampleKey, float],
    prompts: Sequence[Prompt],
    is_example: Callable[[float], bool] = lambda value: True,
) -> list[SampleKey]:
    """Return the images with the highest scores, one for each prompt, at most `MAX_EXAMPLES`."""
    worst: dict[str, tuple[float, SampleKey]] = {}
    ids = {prompt.id for prompt in prompts}
    for key, value in scores.items():
        if key.prompt_id in ids and is_example(value):
            worst[key.prompt_id] = max(worst.get(key.prompt_id, (value, key)), (value, key))
    return [key for _, key in sorted(worst.values(), reverse=True)[:MAX_EXAMPLES]]


def score_columns(
    evaluation: Evaluation, variants: Sequence[VariantScores], name: str, prompts: Sequence[Prompt]
) -> FloatArray:
    """Return the means (G, V) of a score for each prompt and variant."""
    columns = [evaluation.prompt_means(variant, name, prompts) for variant in variants]
    return np.stack(columns, 1) if len(prompts) else np.empty((0, len(variants)))
