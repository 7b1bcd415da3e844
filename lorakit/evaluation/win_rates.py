"""Win rates over the base model: the share of prompts and seeds whose image scores higher with the adapter.

A preference model was trained on comparisons of two images, so a share of wins says more than a difference of
its scores. Equal scores count as half a win.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorakit.core.shares import share_interval
from lorakit.core.statistics import Interval
from lorakit.data.prompts import Role
from lorakit.evaluation.score_table import Evaluation, VariantScores

PREFERENCE_METRICS = ("pickscore", "hpsv2")
SETTING = "win_rates"
"""The key of `Evaluation.settings` with further metrics to count wins of."""
ROLES: tuple[Role, ...] = ("subject", "class", "unrelated")


@dataclass(frozen=True)
class WinRate:
    """The share of pairs that a variant wins against the base model, on prompts of one role."""

    metric: str
    role: Role
    share: Interval
    num_pairs: int

    @property
    def is_better(self) -> bool | None:
        """True or False if the variant wins more or less than half beyond chance, else None."""
        if self.share.ci_low > 0.5:
            return True
        return False if self.share.ci_high < 0.5 else None

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        pairs = {"metric": self.metric, "role": self.role, "num_pairs": self.num_pairs}
        return pairs | {"share": self.share.to_json()}


def win_metrics(evaluation: Evaluation) -> list[str]:
    """Return the metrics to count wins of: preference models, and those that the user named."""
    names = (*PREFERENCE_METRICS, *evaluation.settings.get(SETTING, ()))
    measured = {name for variant in evaluation.variants for name in variant.scores}
    return [name for name in dict.fromkeys(names) if name in measured]


def win_rates(evaluation: Evaluation, variant: VariantScores) -> list[WinRate]:
    """Return the win rates of a variant by metric and role; none without the base model's images."""
    rates = [
        _win_rate(evaluation, variant, metric, role) for metric in win_metrics(evaluation) for role in ROLES
    ]
    return [rate for rate in rates if rate is not None]


def _win_rate(evaluation: Evaluation, variant: VariantScores, metric: str, role: Role) -> WinRate | None:
    if evaluation.base is None:
        return None
    own, base = variant.scores.get(metric, {}), evaluation.base.scores.get(metric, {})
    ids = {prompt.id for prompt in evaluation.prompts_of_role(role)}
    keys = sorted(key for key in own.keys() & base.keys() if key.prompt_id in ids)
    if not keys:
        return None
    wins = _wins([own[key] for key in keys], [base[key] for key in keys])
    share = share_interval(wins, [key.prompt_id for key in keys])
    return WinRate(metric, role, share, len(keys))


def _wins(own: Sequence[float], base: Sequence[float]) -> list[float]:
    difference = np.sign(np.subtract(own, base))
    wins: list[float] = ((difference + 1) / 2).tolist()
    return wins
