"""The cards of a report's alarms: the variants that have each of them, and the images that show it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report.number_format import format_name_range, format_score
from lorakit.evaluation.report.variants import SampleImages
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.reports import Badge, Level, Pair

PAIR_WIDTH = 96  # CSS pixels: five pairs fit a row


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


def alarm_examples(evaluation: Evaluation, variant: VariantScores, alarm: Alarm, root: Path) -> list[Pair]:
    """Return the examples of an alarm, each beside the training image or the base model's image."""
    images = SampleImages(root)
    prompts = {prompt.id: prompt.prompt for prompt in evaluation.prompts}
    pairs = []
    for key in alarm.examples:
        counterpart = _find_counterpart(evaluation, variant, alarm, key)
        if counterpart is None or key not in variant.files:
            continue
        title, (file, caption) = f"{prompts[key.prompt_id]}, seed {key.seed}", counterpart
        first = images.embed(variant.files[key], f"{title}, {variant.name}", PAIR_WIDTH, 448)
        second = images.embed(file, caption, PAIR_WIDTH, 448)
        pairs.append(Pair(first or Badge("missing"), second or Badge("missing"), f"{title}: {caption}"))
    return pairs


def _find_counterpart(
    evaluation: Evaluation, variant: VariantScores, alarm: Alarm, key: SampleKey
) -> tuple[str, str] | None:
    """Return the file of the image to show beside an example of an alarm, and its caption."""
    is_copy = alarm.name in ("copied_images", "memorization", "overfitting")
    name = variant.nearest_train_images.get(key)
    if is_copy and evaluation.train_images is not None and name is not None:
        score = variant.scores["nearest_train_similarity"][key]
        value = format_score(score, metric_spec("nearest_train_similarity"))
        caption = f"training image {name} on the right, similarity {value}"
        return f"{evaluation.train_images}/{name}", caption
    if evaluation.base and key in evaluation.base.files:
        drift = variant.scores.get("drift", {}).get(key)
        change = f", drift {format_score(drift, metric_spec('drift'))}" if drift is not None else ""
        return evaluation.base.files[key], f"base model's image on the right{change}"
    return None
