"""A race of checkpoints: some prompts for all of them, the others for those that can still be the best.

The first prompts are spread over roles and kinds. A variant that is stopped stays in the report with the
images that it has; it is compared on their prompts only, so that every difference remains one between equal
prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from lorakit.data.prompts import Prompt
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import select_checkpoint

FIRST_PROMPTS = 8
LEVEL, MARGIN = 0.9, 0.03
"""Probability, and points of quality, of the guarantee that `find_losers` gives."""


def first_prompts(
    prompts: Sequence[Prompt], triggers: Collection[str], count: int = FIRST_PROMPTS
) -> list[Prompt]:
    """Return the prompts of the first part, in their order: of each role and kind in turn, subjects first.

    Half of them at least are about the subject, if there are as many: these decide.
    """
    groups: dict[tuple[str, str], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.role(triggers), prompt.kind].append(prompt)
    subject = [own for (role, _), own in groups.items() if role == "subject"]
    others = [own for (role, _), own in groups.items() if role != "subject"]
    order = _in_turn(subject)
    rest = _in_turn(others)
    num_others = min(len(rest), max(count - len(order), count // 4))
    chosen = {prompt.id for prompt in (*order[: count - num_others], *rest[:num_others])}
    return [prompt for prompt in prompts if prompt.id in chosen]


def _in_turn(groups: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """Return the first of each group, then the second of each, ..."""
    longest = max(map(len, groups), default=0)
    return [group[row] for row in range(longest) for group in groups if row < len(group)]


def find_losers(evaluation: Evaluation) -> list[str]:
    """Return the names of the variants that need no more prompts.

    These are variants that are worse, beyond chance for all together, than the leader: the one that looks
    best among those without alarms and warnings. A variant that exceeds it by `MARGIN` at most needs no more
    prompts either. With probability `LEVEL` or more the best variant remains, or the leader, which remains,
    is at most `MARGIN` of quality worse. Variants with an alarm need none unless they look better than the
    leader, so that the best one stays in sight.
    """
    variants = evaluation.adapter_variants
    scores = NormalizedScores(evaluation, variants, evaluation.prompts_of_role("subject"))
    if not scores.anchors.has_fidelity or not scores.quality.has_intervals:
        return []
    candidates = {c.variant.name: c for c in select_checkpoint(evaluation).candidates}
    assessed = [candidates[variant.name] for variant in variants]
    clean = [index for index, candidate in enumerate(assessed) if not candidate.alarms]
    if not clean:
        return []
    quality = scores.quality.values
    leader = max(clean, key=lambda index: float(quality[index]))
    kept = scores.quality.not_clearly_worse(LEVEL, MARGIN, leader)
    needless = [c.has_alarm and q <= quality[leader] for c, q in zip(assessed, quality, strict=True)]
    return [
        variant.name
        for variant, is_kept, is_needless in zip(variants, kept, needless, strict=True)
        if not is_kept or is_needless
    ]


def stopped_note(stopped: Sequence[str], num_first: int, num_prompts: int) -> str:
    """Return a sentence about the variants that a race has stopped."""
    if not stopped:
        return f"The race stopped no variant: on {num_first} prompts each could still be the best."
    names = ", ".join(stopped)
    return (
        f"The race stopped {names} after {num_first} of {num_prompts} prompts: on these they are worse than "
        "another variant beyond chance, or have an alarm and look no better. They are not selected."
    )
