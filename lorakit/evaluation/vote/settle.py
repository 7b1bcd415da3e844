"""Checkpoint selection with the votes of people: they decide where the scores cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import Selection, select_checkpoint
from lorakit.evaluation.vote.summary import VoteSummary, readable_votes


def select_with_votes(root: Path, evaluation: Evaluation, max_drift: float | None = None) -> Selection:
    """Select a checkpoint by the scores; a clear preference in the votes in `root` settles a tie.

    See `select_checkpoint` for `max_drift`.
    """
    return settle_tie(select_checkpoint(evaluation, max_drift), readable_votes(root, evaluation))


def settle_tie(selection: Selection, votes: VoteSummary | None) -> Selection:
    """Return the selection with the variant that people prefer among the selected one and those tied with it.

    Votes on other variants change nothing: they cannot overrule a difference in the scores, or an alarm. The
    figures of another variant than the scores select are its own, not cross-fitted: no score chose it.
    """
    if votes is None or selection.variant is None:
        return selection
    names = [selection.variant.name, *selection.tied_with]
    winner = votes.settle(names)
    if winner is None:
        is_undecided = any(pair.first in names and pair.second in names for pair in votes.ended_pairs)
        return replace(selection, preferred_by_people=False) if is_undecided else selection
    losers = votes.less_preferred(winner)
    reason = f"people prefer it to {' and '.join(losers)} in a blind vote"
    if winner == selection.variant.name:
        return replace(selection, reason=f"{selection.reason}; {reason}", preferred_by_people=True)
    (chosen,) = (one for one in selection.candidates if one.variant.name == winner)
    return replace(
        selection,
        variant=chosen.variant,
        reason=f"{reason}; the scores cannot distinguish them",
        quality=chosen.quality,
        fidelity=chosen.fidelity,
        prompt_adherence=chosen.prompt_adherence,
        tied_with=[name for name in names if name != winner],
        num_folds=0,
        worsened=[],
        preferred_by_people=True,
    )
