"""The result of the votes on an evaluation: counts, shares with intervals, the test, consistency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorakit.core.checksums import sha256_file
from lorakit.core.errors import DataError
from lorakit.core.progress import print_line
from lorakit.core.shares import share_interval
from lorakit.core.statistics import Interval
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, find_evaluation_folder, load_evaluation
from lorakit.evaluation.vote.sequential import LEVEL, ScoredVote, sequential_test
from lorakit.evaluation.vote.vote_file import Vote, VoteFile, VoteLog


@dataclass(frozen=True)
class PairResult:
    """The votes on two variants, without repeats. `first` is the one with more votes."""

    first: str
    second: str
    num_votes: int
    votes_first: int
    votes_second: int
    num_too_close: int
    num_both_bad: int
    prompts_first: int
    """Number of prompts on which most votes are for `first`; the rest of `num_prompts` is even."""
    prompts_second: int
    num_prompts: int
    share: Interval
    """Share of the decided votes that are for `first`; every prompt is one unit."""
    level: float
    """Probability that the test states a preference that does not exist."""
    preferred: str | None
    """The variant that is preferred beyond chance, by the sequential test."""
    ended_after: int | None
    """Number of votes after which the test ended; None while it is open."""

    @property
    def num_decided(self) -> int:
        """Number of votes for one of the two."""
        return self.votes_first + self.votes_second

    @property
    def sign_test(self) -> float:
        """P-value of the sign test by prompt, two-sided, as if nobody had looked before."""
        return sign_test(self.prompts_first, self.prompts_second)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        counts = {name: value for name, value in vars(self).items() if name != "share"}
        return {**counts, "share": self.share.to_json(), "sign_test": self.sign_test}


@dataclass(frozen=True)
class VoteSummary:
    """All votes of an evaluation; those on images that have changed since do not count."""

    pairs: tuple[PairResult, ...]
    num_voters: int
    num_repeats: int
    num_consistent: int
    """Number of repeated pairs with the same answer as at first."""
    left_share: float | None
    """Share of the decided votes that are for the image on the left; near one half without a habit."""
    num_outdated: int

    @property
    def num_votes(self) -> int:
        """Number of votes that count."""
        return sum(pair.num_votes for pair in self.pairs)

    @property
    def ended_pairs(self) -> list[PairResult]:
        """The pairs whose test has ended."""
        return [pair for pair in self.pairs if pair.ended_after is not None]

    @property
    def has_ended(self) -> bool:
        """True if the test of every pair has ended."""
        return bool(self.pairs) and len(self.ended_pairs) == len(self.pairs)

    @property
    def unbeaten(self) -> list[str]:
        """The variants that are preferred to another one while none is preferred to them."""
        winners = [pair.preferred for pair in self.pairs if pair.preferred]
        losers = {name for winner in winners for name in self.less_preferred(winner)}
        return [name for name in dict.fromkeys(winners) if name not in losers]

    def settle(self, names: Sequence[str]) -> str | None:
        """Return the one of `names` that is preferred to another one while none is preferred to it.

        None if the votes leave it open; the first of several.
        """
        results = [pair for pair in self.pairs if pair.first in names and pair.second in names]
        winners = {pair.preferred for pair in results if pair.preferred}
        losers = {
            pair.second if pair.preferred == pair.first else pair.first for pair in results if pair.preferred
        }
        return next((name for name in names if name in winners - losers), None)

    def less_preferred(self, name: str) -> list[str]:
        """Return the variants that `name` is preferred to beyond chance."""
        return [
            pair.second if pair.first == name else pair.first for pair in self.pairs if pair.preferred == name
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values: the answer of `lorakit eval vote --json`."""
        return {
            "pairs": [pair.to_json() for pair in self.pairs],
            "num_votes": self.num_votes,
            "num_voters": self.num_voters,
            "num_repeats": self.num_repeats,
            "num_consistent": self.num_consistent,
            "left_share": self.left_share,
            "num_outdated": self.num_outdated,
        }


def sign_test(num_first: int, num_second: int) -> float:
    """Return the two-sided p-value of the exact sign test."""
    total = num_first + num_second
    tail = sum(math.comb(total, k) for k in range(max(num_first, num_second), total + 1))
    return min(1.0, 2 * tail / 2**total)


def vote_summary(folder: str | Path, evaluation: Evaluation | None = None) -> VoteSummary | None:
    """Return the result of the votes on an evaluation, which is the run's or in `folder`; None without votes.

    With `evaluation`, `folder` is its own and scores.json is not read. Raises DataError for a damaged
    votes.jsonl.
    """
    root = find_evaluation_folder(folder) if evaluation is None else Path(folder)
    log = VoteFile(root).read()
    if not log.votes:
        return None
    return summarize(log, evaluation or load_evaluation(root), root)


def readable_votes(root: Path, evaluation: Evaluation) -> VoteSummary | None:
    """Return the result of the votes in `root`; a damaged votes.jsonl is a warning and does not count.

    An evaluation that took hours is written in any case.
    """
    try:
        return vote_summary(root, evaluation)
    except DataError as error:
        print_line(f"warning: the votes are not counted: {error}")
        return None


def current_votes(log: VoteLog, evaluation: Evaluation, root: Path) -> list[Vote]:
    """Return the votes whose images are still those of the evaluation."""
    hashes = image_hashes(log.votes, evaluation, root)
    return [vote for vote in log.votes if _is_current(vote, hashes)]


def summarize(log: VoteLog, evaluation: Evaluation, root: Path) -> VoteSummary:
    """Return the result of the votes whose images are still those of the evaluation."""
    current = current_votes(log, evaluation, root)
    counted = [vote for vote in current if not vote.is_repeat]
    pairs = dict.fromkeys(vote.pair for vote in counted)
    decided = [vote for vote in current if vote.preferred]
    first_votes = {(vote.voter, vote.pair, vote.prompt_id, vote.seed): vote for vote in counted}
    repeats = [
        (first_votes[key], vote)
        for vote in current
        if vote.is_repeat and (key := (vote.voter, vote.pair, vote.prompt_id, vote.seed)) in first_votes
    ]
    return VoteSummary(
        tuple(
            pair_result(pair, [v for v in counted if v.pair == pair], pair_level(log, pair)) for pair in pairs
        ),
        num_voters=len({vote.voter for vote in current}),
        num_repeats=len(repeats),
        num_consistent=sum(first.preferred == again.preferred for first, again in repeats),
        left_share=sum(vote.choice == "left" for vote in decided) / len(decided) if decided else None,
        num_outdated=len(log.votes) - len(current),
    )


def image_hashes(
    votes: Sequence[Vote], evaluation: Evaluation, root: Path
) -> Mapping[tuple[str, SampleKey], str]:
    """Return the hash of each image that was voted on, by variant and key; missing images are left out."""
    variants = {variant.name: variant for variant in evaluation.variants}
    voted = {(name, SampleKey(v.prompt_id, v.seed)) for v in votes for name in (v.left, v.right)}
    files = {
        (name, key): root / variants[name].files[key]
        for name, key in sorted(voted)
        if name in variants and key in variants[name].files
    }
    return {name_and_key: _file_hash(file) for name_and_key, file in files.items() if file.is_file()}


def _file_hash(file: Path) -> str:
    """Return the hash of an image, computed again only if the file has changed."""
    status = file.stat()
    return _known_hash(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _known_hash(file: Path, size: int, modified: int) -> str:
    return sha256_file(file)


def _is_current(vote: Vote, hashes: Mapping[tuple[str, SampleKey], str]) -> bool:
    key = SampleKey(vote.prompt_id, vote.seed)
    return vote.image_hashes == (hashes.get((vote.left, key)), hashes.get((vote.right, key)))


def pair_level(log: VoteLog, pair: tuple[str, str]) -> float:
    """Return the error level of a pair: that of the first session that compared it, divided by its pairs."""
    for variants in log.sessions:
        if set(pair) <= set(variants):
            return LEVEL / math.comb(len(variants), 2)
    return LEVEL


def pair_result(pair: tuple[str, str], votes: Sequence[Vote], level: float) -> PairResult:
    """Return the result of the votes on one pair of variants, in the order they were cast."""
    one, other = pair
    scores = [{one: 1, other: -1, None: 0}[vote.preferred] for vote in votes]
    test = sequential_test([ScoredVote(v.prompt_id, s) for v, s in zip(votes, scores, strict=True)], level)
    preferred = {"first": one, "second": other}.get(test.outcome)
    if sum(scores) < 0 or (sum(scores) == 0 and preferred == other):
        one, other, scores = other, one, [-score for score in scores]
    by_prompt: dict[str, list[int]] = {}
    for vote, score in zip(votes, scores, strict=True):
        by_prompt.setdefault(vote.prompt_id, []).append(score)
    return PairResult(
        one,
        other,
        num_votes=len(votes),
        votes_first=scores.count(1),
        votes_second=scores.count(-1),
        num_too_close=sum(vote.choice == "too_close" for vote in votes),
        num_both_bad=sum(vote.choice == "both_bad" for vote in votes),
        prompts_first=sum(sum(values) > 0 for values in by_prompt.values()),
        prompts_second=sum(sum(values) < 0 for values in by_prompt.values()),
        num_prompts=len(by_prompt),
        share=preferred_share(by_prompt),
        level=level,
        preferred=preferred,
        ended_after=test.ended_after,
    )


def preferred_share(scores_by_prompt: Mapping[str, Sequence[int]]) -> Interval:
    """Return the share of scores above zero among those that are not zero, the mean over prompts."""
    decided = [
        (prompt, score > 0) for prompt, scores in scores_by_prompt.items() for score in scores if score
    ]
    if not decided:
        return Interval.unknown("no vote is for one of the two", 0)
    return share_interval([is_first for _, is_first in decided], [prompt for prompt, _ in decided])
