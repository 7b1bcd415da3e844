"""The cards of a report's alarms: the variants that have each of them, and the images that show it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.report.gallery import alarm_examples
from lorakit.evaluation.report.number_format import format_name_range
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.reports import Level, Pair


@dataclass(frozen=True)
class AlarmCard:
    """One kind of alarm: `message` is that of the most important variant, `others` those of the rest."""

    heading: str
    level: Level
    message: str
    advice: str
    pairs: list[Pair]
    others: list[str]


def alarm_cards(evaluation: Evaluation, selection: Selection | None, root: Path) -> list[AlarmCard]:
    """Return a card for each kind of alarm, those beyond their limit first."""
    raised: dict[str, list[tuple[VariantScores, Alarm]]] = {}
    for candidate in selection.candidates if selection else ():
        for alarm in candidate.alarms:
            raised.setdefault(alarm.name, []).append((candidate.variant, alarm))
    cards = [_card(evaluation, selection, entries, root) for entries in raised.values()]
    return sorted(cards, key=lambda card: card.level != "bad")


def _card(
    evaluation: Evaluation,
    selection: Selection | None,
    entries: Sequence[tuple[VariantScores, Alarm]],
    root: Path,
) -> AlarmCard:
    """Describe the alarm of the recommended variant, else of the last variant with the worst level."""
    selected = selection.variant if selection else None
    variant, alarm = max(
        enumerate(entries), key=lambda item: (item[1][0] is selected, item[1][1].level == "alarm", item[0])
    )[1]
    names = list(dict.fromkeys(one.name for one, _ in entries))
    return AlarmCard(
        heading=f"{alarm.title}: {format_name_range(names)}",
        level="bad" if any(one.level == "alarm" for _, one in entries) else "warn",
        message=f"{variant.name}: {alarm.message}.",
        advice=alarm.advice,
        pairs=alarm_examples(evaluation, variant, alarm, root),
        others=[f"{one.name}: {other.message}." for one, other in entries if one is not variant],
    )
