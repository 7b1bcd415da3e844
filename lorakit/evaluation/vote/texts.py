"""The result of a vote in sentences."""

from __future__ import annotations

from lorakit.evaluation.report.number_format import (
    format_count,
    format_percent,
    format_percent_interval,
    join_names,
)
from lorakit.evaluation.vote.sequential import min_prompts
from lorakit.evaluation.vote.summary import PairResult, VoteSummary

_MANY_VOTES = 12  # from which on few prompts, or a habit, are named
_HABIT_DEVIATIONS = 2.6  # standard deviations of votes for one side; 1 % of voters without a habit exceed it
_MIN_REPEATS = 3


def summary_sentences(summary: VoteSummary) -> list[str]:
    """Return the result in one sentence, that of each of several pairs, and notes about the voters."""
    if not summary.pairs:
        return voter_notes(summary)
    headline, pairs = headline_sentence(summary), [pair_sentence(pair) for pair in summary.pairs]
    return [*dict.fromkeys([headline, *pairs]), *voter_notes(summary)]


def headline_sentence(summary: VoteSummary) -> str:
    """Return the result of all pairs together."""
    if len(summary.pairs) == 1:
        return pair_sentence(summary.pairs[0])
    names = list(dict.fromkeys(name for pair in summary.pairs for name in (pair.first, pair.second)))
    if best := summary.unbeaten:
        beaten = [name for name in names if any(name in summary.less_preferred(one) for one in best)]
        return f"People prefer {join_names(best)} to {join_names(beaten)}."
    if summary.has_ended:
        return f"People have no clear preference among {join_names(names)}."
    return f"Not decided yet among {join_names(names)}."


def pair_sentence(pair: PairResult) -> str:
    """Return the result of two variants: the preferred one, or that there is none."""
    others = [
        f"{number} {words}"
        for number, words in ((pair.num_too_close, "too close"), (pair.num_both_bad, "both bad"))
        if number
    ]
    beside = f" ({', '.join(others)})" if others else ""
    ended = f"the test ended after {format_count(pair.ended_after or 0, 'vote')}"
    if pair.preferred == pair.first:
        return f"{pair.first} is preferred to {pair.second} in {_count_text(pair)}{beside}; {ended}."
    if pair.preferred:  # later votes were for the other one
        return f"{pair.preferred} is preferred to {pair.first}; {ended}. In all, {_share_text(pair)}{beside}."
    counts = f"{_share_text(pair)}{beside}"
    if pair.ended_after is not None:
        return (
            f"No clear preference between {pair.first} and {pair.second}: {counts}; {ended}, because a "
            "preference of 70 : 30 has become unlikely."
        )
    return f"Not decided yet between {pair.first} and {pair.second}: {counts}."


def _share_text(pair: PairResult) -> str:
    """Say for what share of the decided pairs the leading variant was preferred."""
    if not pair.num_decided:
        return f"no decided pair of {pair.num_votes}"
    return f"{pair.first} preferred in {_count_text(pair)}"


def _count_text(pair: PairResult) -> str:
    count, share = format_count(pair.num_decided, "decided pair"), format_percent_interval(pair.share)
    return f"{pair.votes_first} of {count}, {share} over prompts"


def voter_notes(summary: VoteSummary) -> list[str]:
    """Return notes about too few prompts, repeated pairs, a habit of choosing one side, and votes that no
    longer count.
    """
    notes = []
    short = [pair for pair in summary.pairs if pair.num_votes >= _MANY_VOTES and _lacks_prompts(pair)]
    if short:
        needed, count = min_prompts(short[0].level), short[0].num_prompts
        notes.append(f"The test needs votes on at least {needed} prompts; these are on {count}.")
    if summary.num_repeats >= _MIN_REPEATS:
        notes.append(
            f"Of {summary.num_repeats} pairs shown again on exchanged sides, {summary.num_consistent} "
            "got the same answer."
        )
    decided = sum(pair.num_decided for pair in summary.pairs)
    if summary.left_share is not None and decided >= _MANY_VOTES:
        deviations = abs(summary.left_share - 0.5) * 2 * decided**0.5
        if deviations > _HABIT_DEVIATIONS:
            share = format_percent(summary.left_share)
            notes.append(
                f"The image on the left was chosen in {share} of the decided pairs: "
                "look at both sides longer."
            )
    if summary.num_outdated:
        text = format_count(summary.num_outdated, "vote")
        notes.append(f"{text} on images that have changed since or are no longer there: not counted.")
    return notes


def _lacks_prompts(pair: PairResult) -> bool:
    return pair.ended_after is None and pair.num_prompts < min_prompts(pair.level)
