"""The result of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.evaluation.report.write import summary_rows
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import Selection
from lorakit.training.run import Checkpoint


@dataclass(frozen=True)
class EvaluationResult:
    """An evaluation, its checkpoint selection, and the report that shows both."""

    evaluation: Evaluation
    selection: Selection | None
    """None if there is nothing to select from: no base model's images, or only these."""
    report: Path
    """report.html; scores.json and scores.csv are in the same folder."""
    best: Checkpoint | None = None
    """The selected checkpoint of a run; None if none can be recommended (`selection.reason` says why)."""

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The mean of each metric with its 95 % interval, one row for each variant and kind of prompts."""
        return summary_rows(self.evaluation)
