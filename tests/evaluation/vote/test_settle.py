"""The selection with votes: a clear preference decides where the scores cannot distinguish checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lorakit.cli import main
from lorakit.core import storage
from lorakit.evaluation.report.verdict import selection_notes
from lorakit.evaluation.score_table import load_evaluation
from lorakit.evaluation.select import Selection, select_checkpoint
from lorakit.evaluation.vote.settle import select_with_votes, settle_tie
from tests.evaluation.simulated import Truth, simulate
from tests.evaluation.vote.ballots import cast_votes, make_evaluation
from tests.evaluation.vote.test_summary import summary_of


@pytest.fixture(scope="module")
def selection() -> Selection:
    """Step 200 is selected and tied with step 300; step 100 is clearly worse."""
    evaluation = simulate([Truth(100, 0.2, 1.0), Truth(200, 0.7, 1.0), Truth(300, 0.7, 1.0)])
    found = select_checkpoint(evaluation)
    return replace(found, variant=found.candidates[1].variant, tied_with=["step-300"])


@pytest.mark.parametrize(
    ("first", "second", "preferred", "selected", "by_people"),
    [
        ("step-200", "step-300", "step-300", "step-300", True),
        ("step-200", "step-300", "step-200", "step-200", True),
        ("step-200", "step-300", None, "step-200", False),
        ("step-100", "step-200", "step-100", "step-200", None),  # votes do not overrule the scores
        ("base", "step-200", "base", "step-200", None),
    ],
)
def test_votes_decide_between_tied_checkpoints_only(selection, first, second, preferred, selected, by_people):
    settled = settle_tie(selection, summary_of((first, second, preferred)))
    assert settled.variant.name == selected
    assert settled.preferred_by_people is by_people
    assert ("people prefer it" in settled.reason) == bool(by_people)
    assert set(settled.tied_with) == {"step-200", "step-300"} - {selected}


def test_the_figures_are_those_of_the_preferred_one(selection):
    settled = settle_tie(selection, summary_of(("step-200", "step-300", "step-300")))
    (candidate,) = [one for one in selection.candidates if one.variant.name == "step-300"]
    assert (settled.fidelity, settled.quality) == (candidate.fidelity, candidate.quality)
    assert json.loads(json.dumps(settled.to_json()))["preferred_by_people"] is True


def test_without_votes_or_a_selection_nothing_changes(selection):
    assert settle_tie(selection, None) is selection
    nothing = replace(selection, variant=None)
    assert settle_tie(nothing, summary_of(("step-200", "step-300", "step-300"))) is nothing


def test_a_vote_settles_the_tie_in_pick_and_report(tmp_path, capsys):
    evaluation = make_evaluation(tmp_path, prompts=8)
    one, equal = evaluation.variants[2:]
    equal.scores, equal.reference_similarity = one.scores, one.reference_similarity
    storage.write_json(tmp_path / "scores.json", evaluation.to_json())
    by_scores = select_checkpoint(load_evaluation(tmp_path))
    assert by_scores.variant.name in ("step-200", "step-300")
    assert len(by_scores.tied_with) == 1
    other = by_scores.tied_with[0]
    cast_votes(tmp_path, "-" * 16, (by_scores.variant.name, other))
    assert select_with_votes(tmp_path, load_evaluation(tmp_path)).variant.name == other
    assert main.main(["eval", "pick", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["selected"], answer["preferred_by_people"]) == (other, True)
    assert answer["votes"]["pairs"][0]["preferred"] == other
    assert main.main(["eval", "report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{other} is preferred to {by_scores.variant.name}" in page
    assert storage.read_json(tmp_path / "scores.json")["selection"]["selected"] == other


@pytest.mark.parametrize(
    ("preferred", "sentence"),
    [
        ("step-300", "people prefer it in a blind vote"),
        (None, "people have no clear preference in a blind vote"),
        ("no vote", "`lorakit eval vote RUN` lets people decide"),
    ],
)
def test_the_notes_name_a_vote_or_suggest_one(selection, preferred, sentence):
    evaluation = simulate([Truth(100, 0.2, 1.0), Truth(200, 0.7, 1.0), Truth(300, 0.7, 1.0)])
    votes = None if preferred == "no vote" else summary_of(("step-200", "step-300", preferred))
    settled = settle_tie(selection, votes)
    assert any(sentence in note for note in selection_notes(evaluation, settled))
