"""The pages of a vote, from the templates; everything of a file or a person is escaped by them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lorakit.core import platform
from lorakit.evaluation.report.number_format import NO_VALUE, format_percent, format_percent_interval
from lorakit.evaluation.vote.sequential import LEVEL
from lorakit.evaluation.vote.session import VoterState, VoteSession
from lorakit.evaluation.vote.summary import PairResult, VoteSummary
from lorakit.evaluation.vote.texts import summary_sentences, voter_notes
from lorakit.reports import Table
from lorakit.reports.rendering import environment

TEMPLATES = Path(__file__).with_name("templates")
MAX_NAME_LENGTH = 60  # characters of a voter's name
USUAL_VOTES = (20, 50)  # of a pair of variants until its test ends
HEADERS = ("Variants", "Preferred", "Against", "Too close", "Both bad", "Share", "Prompts, sign test", "Test")


def static_file(name: str) -> str:
    """Return a style sheet or script; the style of the reports comes before that of the page."""
    if name == "style.css":
        return "\n".join(environment(TEMPLATES).get_template(part).render() for part in (name, "vote.css"))
    return (TEMPLATES / name).read_text(encoding="utf-8")


def vote_page(session: VoteSession, voter: str, state: VoterState, *, more: bool, notice: str = "") -> str:
    """Return the page with the voter's next pair; the next but one is loaded in advance."""
    assert state.position is not None
    return _render(
        "vote.html",
        title="Which image is better?",
        voter=voter,
        position=state.position,
        more="1" if more else "",
        num_votes=state.num_votes,
        usual_votes=_usual_votes(session),
        prompt=session.prompt(voter, state.position).prompt,
        images=list(zip("AB", _image_addresses(voter, state.position), strict=True)),
        next_images=_image_addresses(voter, state.next_position) if state.next_position is not None else [],
        references=[f"reference/{number}" for number in range(len(session.references))],
        max_name=MAX_NAME_LENGTH,
        notice=notice,
    )


def _usual_votes(session: VoteSession) -> str:
    """Return the number of votes after which most tests end: 20 to 50."""
    pairs = math.comb(len(session.choice.names), 2)
    return " to ".join(str(count * pairs) for count in USUAL_VOTES)


def _image_addresses(voter: str, position: int) -> list[str]:
    return [f"image/{position}/{side}?{urlencode({'voter': voter})}" for side in ("left", "right")]


def result_page(session: VoteSession, voter: str, state: VoterState, summary: VoteSummary) -> str:
    """Return the page with the result so far."""
    headline, sentences = "Nobody has voted on these images yet.", voter_notes(summary)
    if summary.pairs:
        headline, *sentences = summary_sentences(summary)
    return _render(
        "vote_result.html",
        title="Result of the votes",
        headline=headline,
        level="good" if summary.unbeaten else "note",
        next_step=_next_step(session, state, summary),
        sentences=sentences,
        table=result_table(summary) if summary.pairs else None,
        level_text=format_percent(LEVEL),
        voter=voter,
        can_vote=state.position is not None,
        num_votes=summary.num_votes,
        num_own_votes=state.num_votes,
    )


def _next_step(session: VoteSession, state: VoterState, summary: VoteSummary) -> str:
    if not summary.has_ended and state.position is None:
        return "every pair was voted on: let somebody else vote too, or evaluate with 24 prompts or more."
    if not summary.has_ended:
        return "" if not summary.pairs else "vote on more pairs; the test may be looked at after every vote."
    folder = session.root.parent if session.root.name == "eval" else session.root
    command = f"lorakit eval report {platform.quote_argument(str(folder))}"
    return f"`{command}` adds this result to the report and selects again."


def result_table(summary: VoteSummary) -> Table:
    """Return one row for each pair of variants."""
    return Table(HEADERS, [_result_row(pair) for pair in summary.pairs], label="Votes")


def _result_row(pair: PairResult) -> tuple[str | int, ...]:
    even = pair.num_prompts - pair.prompts_first - pair.prompts_second
    test = f"open after {pair.num_votes}"
    if pair.ended_after is not None:
        test = f"{pair.preferred or 'no clear preference'} after {pair.ended_after}"
    return (
        f"{pair.first} : {pair.second}",
        pair.votes_first,
        pair.votes_second,
        pair.num_too_close,
        pair.num_both_bad,
        format_percent_interval(pair.share) if pair.num_decided else NO_VALUE,
        f"{pair.prompts_first} : {pair.prompts_second}, {even} even (p = {pair.sign_test:.2g})",
        test,
    )


def closed_page(title: str, text: str) -> str:
    """Return a page without a form: the vote has ended, or a request was refused."""
    return _render("vote_closed.html", title=title, text=text)


def _render(template: str, **values: Any) -> str:
    return environment(TEMPLATES).get_template(template).render(values)
