"""report.html of an evaluation: one file, offline, the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit import report
from lorakit.evaluate import gallery, overview, verdict
from lorakit.evaluate.alarms import Alarm
from lorakit.evaluate.pick import Pick
from lorakit.evaluate.table import METRICS, Arm, Evaluation
from lorakit.evaluate.wording import count, span
from lorakit.report import Html
from lorakit.statistics import ENOUGH_PROMPTS

STYLE = """
.page { max-width: 1360px; }
figure text.note, figure text.name { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.pair { align-content: start; }
"""


def page(
    evaluation: Evaluation,
    pick: Pick | None,
    root: Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    versions: Mapping[str, str],
    extra: Sequence[Html] = (),
) -> str:
    """The whole document; `metrics` are rows of the run's metrics.jsonl, `extra` further sections."""
    text, good = verdict.headline(evaluation, pick)
    body = [
        report.verdict(text, good),
        *(report.paragraph(remark) for remark in verdict.remarks(evaluation, pick)),
        *(
            [report.section("Fidelity and adherence", *parts)]
            if pick and (parts := overview.trade(evaluation, pick))
            else []
        ),
        *_progress(evaluation, pick),
        *_alarms(evaluation, pick, root),
        report.section("Scores", *_scores(evaluation, pick)),
        report.section("Pictures", *gallery.grid(evaluation, evaluation.arms, root, pick)),
        *(
            [report.section("What was done", report.table(["", ""], evaluation.facts))]
            if evaluation.facts
            else []
        ),
        *([report.section("Training", *report.training_curves(metrics))] if metrics else []),
        *extra,
        report.section("Settings and versions", *settings(evaluation.settings, versions)),
    ]
    return report.page(evaluation.title, body, style=STYLE)


def comparison(
    evaluation: Evaluation, before: Arm, after: Arm, root: Path, *, versions: Mapping[str, str]
) -> str:
    """The document of two arms side by side."""
    text, good = verdict.difference(evaluation, before, after)
    few = len(evaluation.prompts) < ENOUGH_PROMPTS
    body = [
        report.verdict(text, good),
        report.paragraph(f"Indicative: {count(len(evaluation.prompts), 'prompt')}.") if few else Html(),
        *(report.paragraph(note) for note in evaluation.notes),
        report.section("Differences", overview.differences(evaluation, before, after), _note()),
        report.section("By kind of prompts", overview.kinds_table(evaluation, before, after)),
        report.section("Pictures", *gallery.grid(evaluation, [before, after], root, None)),
        report.section("Settings and versions", *settings(evaluation.settings, versions)),
    ]
    return report.page(evaluation.title, body, style=STYLE)


def _progress(evaluation: Evaluation, pick: Pick | None) -> list[Html]:
    parts = overview.progress(evaluation, pick) if pick else []
    note = "Bands are 95 % intervals over prompts (over images for losses); the green line is the pick."
    return [report.section("As training went on", *parts, report.paragraph(note))] if parts else []


def _alarms(evaluation: Evaluation, pick: Pick | None, root: Path) -> list[Html]:
    """A card for each kind of alarm: the arms that have it, and the pictures that raised it in the last."""
    raised: dict[str, list[tuple[Arm, Alarm]]] = {}
    for standing in pick.standings if pick else []:
        for alarm in standing.alarms:
            raised.setdefault(alarm.kind, []).append((standing.arm, alarm))
    if not raised:
        return []
    note = (
        "An arm with an alarm is not picked. Limits come from this evaluation itself: how alike the training "
        "images are, how much another seed changes the base's pictures."
    )
    cards = [_card(evaluation, some, root) for some in raised.values()]
    return [report.section("Alarms", report.paragraph(note), *cards)]


def _card(evaluation: Evaluation, raised: Sequence[tuple[Arm, Alarm]], root: Path) -> Html:
    told = [f"{arm.name}: {alarm.text.partition(': ')[2] or alarm.text}." for arm, alarm in raised]
    arm, alarm = raised[-1]
    name = alarm.text.partition(":")[0]
    heading = f"{name[:1].upper()}{name[1:]}: {span([arm.name for arm, _ in raised])}"
    first = [report.paragraph(told[-1])]
    rest = [report.details(f"{count(len(told) - 1, 'earlier arm')}", *map(report.paragraph, told[:-1]))]
    shown = gallery.copies(evaluation, arm, alarm, root)
    return report.card(heading, *first, shown, *(rest if len(told) > 1 else []), good=False)


def _scores(evaluation: Evaluation, pick: Pick | None) -> list[Html]:
    base = evaluation.base
    parts = [overview.arms_table(evaluation, pick)]
    if base and pick and (lead := pick.arm or (evaluation.tuned[-1] if evaluation.tuned else None)):
        parts.append(overview.kinds_table(evaluation, base, lead))
    elif len(evaluation.arms) == 1:
        parts = [overview.kind_scores(evaluation, evaluation.arms[0])]
    return [*parts, _note(), report.details("What the numbers are", _definitions(evaluation))]


def _note() -> Html:
    return report.paragraph(
        "Brackets are 95 % intervals of a bootstrap over prompts, each with all its seeds; differences are "
        f"paired by prompt and seed. With fewer than {ENOUGH_PROMPTS} prompts they are indicative only."
    )


def _definitions(evaluation: Evaluation) -> Html:
    names = dict.fromkeys(name.partition("@")[0] for name in evaluation.measured())
    names |= dict.fromkeys(name for arm in evaluation.arms for name in arm.totals if name in METRICS)
    return report.table(["Score", ""], [[METRICS[name].title, METRICS[name].note] for name in names])


def settings(used: Mapping[str, Any], versions: Mapping[str, str]) -> list[Html]:
    """What every number depends on, a table for each model that judged."""
    used = dict(sorted(used.items()))  # as they come out of scores.json, so that the page is the same again
    plain = [[name, shown(value)] for name, value in used.items() if not isinstance(value, Mapping)]
    parts = [report.table(["", ""], plain)] if plain else []
    for name, value in used.items():
        if not isinstance(value, Mapping):
            continue
        rows = [[key, shown(item)] for key, item in sorted(value.items()) if key != "truncated"]
        parts.append(report.table([name[:1].upper() + name[1:], ""], rows))
        if cut := list(value.get("truncated") or []):
            listed = report.tag("ul", *(report.tag("li", text) for text in cut))
            told = f"{count(len(cut), 'text')} did not fit its context and scored by what they begin with"
            parts.append(report.details(told, listed))
    parts.append(report.details("Versions", report.table(["Package", "Version"], list(versions.items()))))
    return parts


def shown(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return "none" if value is None else str(value)
