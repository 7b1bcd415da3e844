"""The result of votes: counts, intervals, family-wise levels, consistency, and the tie that it settles."""

from __future__ import annotations

import json

import pytest

from lorakit.core import storage
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import load_evaluation
from lorakit.evaluation.vote.sequential import LEVEL
from lorakit.evaluation.vote.summary import (
    PairResult,
    VoteSummary,
    pair_result,
    preferred_share,
    readable_votes,
    sign_test,
    vote_summary,
)
from lorakit.evaluation.vote.texts import pair_sentence, summary_sentences
from lorakit.evaluation.vote.vote_file import VoteFile
from tests.evaluation.vote.ballots import CHOICES, cast_votes, make_evaluation, make_vote


def result(scores: str, prompts: int = 24, level: float = LEVEL) -> PairResult:
    """The result of votes on prompts in turn: for `a` (+), for `b` (-), too close (.), both bad (x)."""
    votes = [make_vote(i, f"p{i % prompts}", CHOICES[score], seed=i) for i, score in enumerate(scores)]
    return pair_result(("a", "b"), votes, level)


def test_the_counts_are_those_of_the_votes_and_the_leader_comes_first():
    pair = result("+--.x-", prompts=3)
    assert (pair.first, pair.second) == ("b", "a")
    assert (pair.num_votes, pair.votes_first, pair.votes_second, pair.num_decided) == (6, 3, 1, 4)
    assert (pair.num_too_close, pair.num_both_bad) == (1, 1)
    assert (pair.num_prompts, pair.prompts_first, pair.prompts_second) == (3, 2, 1)
    assert pair.share.mean == pytest.approx(2 / 3)  # the mean of 0 of 1, 1 of 1 and 2 of 2
    assert pair.preferred is None


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (8, 0, 2 / 256), (9, 1, 22 / 1024), (1, 9, 22 / 1024)],
)
def test_the_sign_test_is_exact(first, second, p):
    assert sign_test(first, second) == pytest.approx(p)


def test_the_share_has_an_interval_that_is_wider_if_seeds_agree():
    independent = preferred_share({f"p{i}": [1 if i < 21 else -1, 0] for i in range(28)})
    assert (independent.mean, independent.num_prompts) == (0.75, 28)
    assert 0.5 < independent.ci_low < 0.6 < 0.85 < independent.ci_high < 0.9
    agreeing = preferred_share({f"p{i}": [1 if i < 5 else -1] * 4 for i in range(7)})
    assert agreeing.ci_high - agreeing.ci_low > 1.5 * (independent.ci_high - independent.ci_low)
    assert preferred_share({"p": [1, 1], "q": [1, 1]}).ci_low < 0.7  # unanimous votes are not certain
    assert not preferred_share({"p": [0]}).is_known


@pytest.mark.parametrize(
    ("scores", "parts"),
    [
        (
            "+" * 12,
            [
                "a is preferred to b in 12 of 12 decided pairs, 100 % [",
                "the test ended after",
            ],
        ),
        ("+-" * 15, ["No clear preference between a and b", "15 of 30", "70 : 30"]),
        ("+-", ["Not decided yet between a and b", "1 of 2 decided pairs"]),
        ("x", ["no decided pair of 1", "1 both bad"]),
    ],
)
def test_the_sentence_states_the_outcome_with_its_figures(scores, parts):
    sentence = pair_sentence(result(scores, prompts=30))
    for part in parts:
        assert part in sentence


def summary_of(*outcomes: tuple[str, str, str | None]) -> VoteSummary:
    """A summary with one result for each (first, second, preferred)."""
    pairs = []
    for first, second, preferred in outcomes:
        scores = "+" * 12 if preferred == first else "-" * 12 if preferred == second else "+-" * 20
        votes = [make_vote(i, f"p{i}", CHOICES[s], left=first, right=second) for i, s in enumerate(scores)]
        pairs.append(pair_result((first, second), votes, LEVEL))
        assert pairs[-1].preferred == preferred
    return VoteSummary(tuple(pairs), 1, 0, 0, 0.5, 0)


@pytest.mark.parametrize(
    ("outcomes", "names", "settled"),
    [
        ([("a", "b", "b")], ["a", "b"], "b"),
        ([("a", "b", "a")], ["a", "b"], "a"),
        ([("a", "b", None)], ["a", "b"], None),
        ([("a", "b", "b")], ["a", "c"], None),  # about a variant that is not tied
        ([("a", "b", "b"), ("a", "c", "c"), ("b", "c", "c")], ["a", "b", "c"], "c"),
        ([("a", "b", "b"), ("a", "c", "c"), ("b", "c", None)], ["a", "b", "c"], "b"),  # the first of two
        ([("a", "b", "b"), ("b", "c", "c"), ("a", "c", "a")], ["a", "b", "c"], None),  # a circle
    ],
)
def test_a_clear_preference_settles_a_tie(outcomes, names, settled):
    assert summary_of(*outcomes).settle(names) == settled


@pytest.fixture
def root(tmp_path):
    make_evaluation(tmp_path)
    return tmp_path


def test_without_votes_there_is_no_summary(root):
    assert vote_summary(root) is None
    VoteFile(root).start_session(("step-200", "step-300"))
    assert vote_summary(root) is None


def test_votes_of_several_people_count_together(root):
    cast_votes(root, "-" * 6, voter="Anna")
    cast_votes(root, "-" * 6, voter="Otto")
    summary = vote_summary(root)
    assert (summary.num_voters, summary.num_votes) == (2, 12)
    (pair,) = summary.pairs
    assert (pair.first, pair.votes_first, pair.num_prompts) == ("step-300", 12, 6)


def test_votes_on_images_that_have_changed_are_not_counted(root):
    cast_votes(root, "-" * 8)
    storage.write_bytes(root / "step-300/s3-0.png", (root / "step-300/s2-0.png").read_bytes())
    (root / "step-200/s4-0.png").unlink()
    summary = vote_summary(root)
    assert (summary.num_votes, summary.num_outdated) == (6, 2)
    assert "2 votes on images that have changed" in summary_sentences(summary)[-1]


def test_repeats_measure_consistency_and_do_not_count(root):
    cast_votes(root, "+-+-+-++")
    cast_votes(root, "+-+-.", is_repeat=True)
    summary = vote_summary(root)
    assert (summary.num_votes, summary.num_repeats, summary.num_consistent) == (8, 5, 4)
    assert "Of 5 pairs shown again on exchanged sides, 4 got the same answer." in summary_sentences(summary)


@pytest.mark.parametrize(("choices", "has_note"), [("+" * 16, True), ("+-" * 8, False)])
def test_a_habit_of_choosing_one_side_is_named(root, choices, has_note):
    cast_votes(root, choices)
    notes = [text for text in summary_sentences(vote_summary(root)) if "on the left" in text]
    assert bool(notes) == has_note


def test_three_variants_share_the_level_of_the_test(root):
    variants = ("step-100", "step-200", "step-300")
    for pair in (("step-100", "step-200"), ("step-200", "step-300")):
        cast_votes(root, "-" * 9, pair, variants=variants, voter=pair[0])
    summary = vote_summary(root)
    assert [pair.level for pair in summary.pairs] == [pytest.approx(LEVEL / 3)] * 2
    cast_votes(root, "-" * 9, ("step-100", "step-300"), voter="another")
    assert [pair.level for pair in vote_summary(root).pairs] == [pytest.approx(LEVEL / 3)] * 3


def test_the_summary_is_plain_json(root):
    cast_votes(root, "-+-" * 3)
    value = json.loads(json.dumps(vote_summary(root).to_json(), allow_nan=False))
    assert value["num_votes"] == 9
    assert value["pairs"][0]["share"]["mean"] == pytest.approx(5 / 8)
    empty = VoteSummary((result(".."),), 1, 0, 0, None, 0)
    json.dumps(empty.to_json(), allow_nan=False)


def test_votes_for_variants_that_the_evaluation_lacks_are_outdated(root):
    cast_votes(root, "++", ("step-100", "step-200"))
    evaluation = make_evaluation(root / "other", prompts=4)
    evaluation.variants = evaluation.variants[2:]
    assert vote_summary(root, evaluation).num_outdated == 2
    assert SampleKey("s0", 0) in evaluation.variants[0].files


def test_votes_that_cannot_be_read_do_not_stop_an_evaluation_from_being_written(root, capsys):
    evaluation = load_evaluation(root)
    cast_votes(root, "++")
    assert readable_votes(root, evaluation).num_votes == 2
    with open(root / "votes.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    assert readable_votes(root, evaluation) is None
    assert "the votes are not counted" in capsys.readouterr().err


def test_votes_are_read_before_scores_json_is_written(root):
    evaluation = load_evaluation(root)
    (root / "scores.json").unlink()
    assert vote_summary(root, evaluation) is None
    cast_votes(root, "+-")
    assert vote_summary(root, evaluation).num_votes == 2


@pytest.mark.parametrize(
    ("scores", "prompts", "has_note"), [("+" * 12, 5, True), ("+" * 4, 4, False), ("+-" * 9, 6, False)]
)
def test_too_few_prompts_are_named_after_some_votes(scores, prompts, has_note):
    summary = VoteSummary((result(scores, prompts),), 1, 0, 0, 0.5, 0)
    assert any("at least 6 prompts" in text for text in summary_sentences(summary)) == has_note


@pytest.mark.parametrize(
    ("outcomes", "headline"),
    [
        ([("a", "b", "b"), ("a", "c", "c"), ("b", "c", None)], "People prefer b and c to a."),
        ([("a", "b", "b"), ("a", "c", "c"), ("b", "c", "c")], "People prefer c to b and a."),
        ([("a", "b", None), ("a", "c", None)], "People have no clear preference among a, b and c."),
        (
            [("a", "b", "b"), ("b", "c", "c"), ("a", "c", "a")],
            "People have no clear preference among b, a and c.",
        ),
    ],
)
def test_several_pairs_have_a_result_together(outcomes, headline):
    sentences = summary_sentences(summary_of(*outcomes))
    assert sentences[0] == headline
    assert len(sentences) >= 1 + len(outcomes)


def test_a_preference_that_later_votes_turn_over_is_stated_with_both():
    sentence = pair_sentence(result("+" * 10 + "-" * 14, prompts=24))
    assert sentence.startswith(
        "a is preferred to b; the test ended after 9 votes. In all, b preferred in 14 of 24"
    )
