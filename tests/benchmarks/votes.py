"""Error rates and length of the sequential test of `lorakit eval vote`, by simulated voters.

The voter sees every prompt once, then a second seed of every prompt, and so on, until the test ends or no
pair is left. `spread` is the difference between prompts: the probability of preferring the first variant is
that much higher on one half of the prompts and lower on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorakit.evaluation.vote.sequential import ScoredVote, sequential_test
from lorakit.evaluation.vote.summary import preferred_share


@dataclass(frozen=True)
class Scenario:
    """A voter and a prompt set, and the least and most that the shares of outcomes may be."""

    name: str
    share: float
    too_close: float = 0.2
    prompts: int = 24
    seeds: int = 4
    spread: float = 0.0
    max_wrong: float = 0.05
    """Largest share of votes with a preference in the wrong direction, or with any at 50 : 50."""
    min_found: float = 0.0
    max_votes: float = 96.0
    """Largest mean number of votes."""


SCENARIOS = (
    Scenario("50 : 50", 0.5),
    Scenario("50 : 50, nothing too close", 0.5, too_close=0.0),
    Scenario("50 : 50, prompts differ", 0.5, spread=0.4),
    Scenario("50 : 50, 8 prompts differ", 0.5, prompts=8, spread=0.4),
    Scenario("70 : 30", 0.7, max_wrong=0.01, min_found=0.75, max_votes=52),
    Scenario("70 : 30, nothing too close", 0.7, too_close=0.0, max_wrong=0.01, min_found=0.85, max_votes=45),
    Scenario("70 : 30, prompts differ", 0.7, spread=0.2, max_wrong=0.01, min_found=0.7, max_votes=56),
    Scenario("70 : 30, 48 prompts", 0.7, prompts=48, max_wrong=0.01, min_found=0.8, max_votes=60),
    Scenario("80 : 20", 0.8, max_wrong=0.01, min_found=0.98, max_votes=30),
    Scenario("90 : 10", 0.9, max_wrong=0.01, min_found=0.99, max_votes=22),
)


@dataclass(frozen=True)
class Outcomes:
    """Shares of simulated votes by outcome, the mean number of votes, and the coverage of the interval."""

    scenario: Scenario
    wrong: float
    found: float
    without_preference: float
    mean_votes: float
    coverage: float

    @property
    def passes(self) -> bool:
        """True if the shares are within the scenario's limits, with the error of the simulation allowed."""
        limits = self.scenario
        return (
            self.wrong <= limits.max_wrong + 0.005
            and self.found >= limits.min_found
            and self.mean_votes <= limits.max_votes
        )


def simulate_votes(scenario: Scenario, rng: np.random.Generator) -> list[ScoredVote]:
    """Return the votes of one voter on all pairs."""
    signs = rng.permutation(np.arange(scenario.prompts) % 2 * 2 - 1)
    shares = np.clip(scenario.share + scenario.spread * signs, 0, 1)
    votes = []
    for _ in range(scenario.seeds):
        for prompt in rng.permutation(scenario.prompts):
            score = 0 if rng.random() < scenario.too_close else 1 if rng.random() < shares[prompt] else -1
            votes.append(ScoredVote(str(prompt), score))
    return votes


def measure(scenario: Scenario, count: int = 1000, seed: int = 0) -> Outcomes:
    """Return the outcomes of `count` simulated votes."""
    rng = np.random.default_rng(seed)
    outcomes, lengths, covered = [], [], []
    for _ in range(count):
        votes = simulate_votes(scenario, rng)
        result = sequential_test(votes)
        length = result.ended_after or len(votes)
        by_prompt: dict[str, list[int]] = {}
        for vote in votes[:length]:
            by_prompt.setdefault(vote.prompt_id, []).append(vote.score)
        share = preferred_share(by_prompt)
        covered.append(share.ci_low <= scenario.share <= share.ci_high)
        outcomes.append(result.outcome)
        lengths.append(length)
    shares = {name: outcomes.count(name) / count for name in ("first", "second", "no_preference")}
    wrong = shares["second"] + (shares["first"] if scenario.share == 0.5 else 0)
    return Outcomes(
        scenario,
        wrong,
        0.0 if scenario.share == 0.5 else shares["first"],
        shares["no_preference"],
        float(np.mean(lengths)),
        float(np.mean(covered)),
    )


def format_report(rows: list[Outcomes]) -> str:
    """Return the table that is printed."""
    lines = [f"{'voter':32} {'wrong':>6} {'found':>6} {'no preference':>13} {'votes':>6} {'coverage':>8}"]
    for row in rows:
        lines.append(
            f"{row.scenario.name:32} {row.wrong:6.3f} {row.found:6.3f} {row.without_preference:13.3f} "
            f"{row.mean_votes:6.1f} {row.coverage:8.3f}  {'' if row.passes else 'MISSED'}"
        )
    return "\n".join(lines)
