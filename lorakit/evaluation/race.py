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
_FAMILY_ERROR = 0.05  # probability that any variant is stopped that is as good as the one it is compared with


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
    """Return the names of the variants that cannot be selected any more.

    Such a variant is worse in quality than the best one without an alarm, beyond chance for all variants
    together. A variant is not compared with one that has an alarm, which may be left out in the end.
    """
    variants = evaluation.adapter_variants
    scores = NormalizedScores(evaluation, variants, evaluation.prompts_of_role("subject"))
    if not (scores.anchors.has_fidelity or scores.anchors.has_prompt_adherence):
        return []
    alarmed = {
        candidate.variant.name
        for candidate in select_checkpoint(evaluation).candidates
        if any(alarm.level == "alarm" for alarm in candidate.alarms)
    }
    sound = [index for index, variant in enumerate(variants) if variant.name not in alarmed]
    if not sound:
        return []
    best = max(sound, key=lambda index: float(scores.quality.values[index]))
    others = [index for index in range(len(variants)) if index != best]
    level = 1 - _FAMILY_ERROR / max(1, len(others))
    return [variants[i].name for i in others if scores.quality_difference(i, best, level).ci_high < 0]


def stopped_note(stopped: Sequence[str], num_first: int, num_prompts: int) -> str:
    """Return a sentence about the variants that a race has stopped."""
    if not stopped:
        return f"The race stopped no variant: on {num_first} prompts each could still be the best."
    names = ", ".join(stopped)
    return (
        f"The race stopped {names} after {num_first} of {num_prompts} prompts: on these they are worse than "
        "another variant, beyond chance. They are not selected."
    )
