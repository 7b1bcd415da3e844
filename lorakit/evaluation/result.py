"""The result of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """report.html; scores.json, scores.csv and selection.json (of a run) are in the same folder."""
    best: Checkpoint | None = None
    """The selected checkpoint of a run with its strength, else the best one with its alarms.

    `selection.variant` and `selection.despite_alarms` say whether it is recommended. None if nothing could be
    measured: `selection.reason` says why.
    """
    next_commands: list[str] = field(default_factory=list)
    """The commands that export the selected checkpoint of a run, and sample with it."""

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The mean of each metric with its 95 % interval, one row for each variant and kind of prompts."""
        return summary_rows(self.evaluation)
