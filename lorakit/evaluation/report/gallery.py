"""The pictures of a report: the grid of prompts and arms, copies beside their originals, a contact sheet."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorakit import reports
from lorakit.core.errors import LorakitError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.report.number_format import format_count, format_score
from lorakit.evaluation.score_table import Evaluation, SampleKey, VariantScores, metric_spec
from lorakit.evaluation.select import Selection
from lorakit.imaging.decode import decode_image
from lorakit.reports import Html

MAX_PROMPTS = 48
MAX_IMAGES = 480  # in a page, which holds them all
STORED_WIDTHS = (
    (100, 640),
    (240, 448),
    (MAX_IMAGES, 320),
)  # pictures in the page: pixels that each is stored with
THUMBNAIL = 104  # CSS pixels
PAIR_WIDTH = 104  # five pairs fit a row
SHEET_PROMPTS, SHEET_SEEDS, SHEET_CELL = 24, 8, 128
_VISIBLE_DIFFERENCE = 0.0005  # a difference of cosines that is not shown


class SampleImages:
    """Opens an evaluation's pictures, or says in a cell that one is gone."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.side = next((side for most, side in STORED_WIDTHS if count <= most), STORED_WIDTHS[-1][1])

    def cell(self, file: str, alt: str, width: int = THUMBNAIL) -> Html:
        """A picture that a click enlarges."""
        picture = self.open(file)
        if picture is None:
            return reports.tag("span", reports.badge("missing"))
        lossless = picture.width <= 2 * THUMBNAIL  # small ones would show the blocks of a JPEG
        kind = "PNG" if lossless else "JPEG"
        return reports.embed_image(picture, alt=alt, width=width, enlarged=self.side, format=kind)

    def open(self, file: str) -> Image.Image | None:
        """The picture, or None when it cannot be had any more."""
        try:
            return decode_image(
                Path(os.path.normpath(self.root / file))
            )  # `root` itself may not be there yet
        except (OSError, LorakitError):
            return None


def sample_grid(
    evaluation: Evaluation, arms: Sequence[VariantScores], root: Path, pick: Selection | None
) -> list[Html]:
    """Prompts down, arms across; the prompts that are worst come first."""
    lead = pick.arm if pick and pick.arm else arms[-1]
    before = evaluation.base if evaluation.base in arms and lead is not evaluation.base else None
    ranked = rank_prompts(evaluation, before, lead)[:MAX_PROMPTS]
    seeds = max(1, min(4, MAX_IMAGES // max(1, len(ranked) * len(arms))))
    if len(arms) > 3:
        seeds = 1
    pictures = SampleImages(root, len(ranked) * len(arms) * seeds)
    chosen = [_seeds(prompt, lead, seeds) for prompt in ranked]
    heads = [_head(arm, pick) for arm in arms]
    cells = [
        [_cell(evaluation, prompt, arm, row, pictures) for arm in arms]
        for prompt, row in zip(ranked, chosen, strict=True)
    ]
    names = [_name(evaluation, prompt, before, lead) for prompt in ranked]
    shown = sum(map(len, chosen)) * len(arms)
    hidden = sum(len(arm.files) for arm in arms) - shown
    more = f" {format_count(hidden, 'further picture')} are in the files alone." if hidden else ""
    order = "gained least" if before else "score lowest"
    note = f"Prompts that {order} come first. Numbers are CLIP-T. A click enlarges a picture.{more}"
    return [reports.paragraph(note), reports.html_grid(heads, names, cells)]


def rank_prompts(evaluation: Evaluation, before: VariantScores | None, lead: VariantScores) -> list[Prompt]:
    """Prompts by CLIP-T of `lead`, or by its gain over `before`; the lowest first."""
    values = evaluation.column(lead, "clip_t", evaluation.prompts)
    if before:
        values = values - evaluation.column(before, "clip_t", evaluation.prompts)
    order = sorted(range(len(values)), key=lambda row: (not math.isfinite(values[row]), values[row]))
    return [evaluation.prompts[row] for row in order]


def _seeds(prompt: Prompt, lead: VariantScores, most: int) -> list[int]:
    """The seeds that are worst in `lead`, in their own order."""
    scores = lead.scores.get("clip_t", {})
    worst = sorted(prompt.seeds, key=lambda seed: scores.get((prompt.id, seed), math.inf))[:most]
    return sorted(worst)


def _head(arm: VariantScores, pick: Selection | None) -> Html:
    name = reports.escape(arm.name)
    if pick and pick.arm is arm:
        return reports.join([name, reports.tag("br"), reports.badge("pick", True)])
    alarmed = pick and any(standing.arm is arm and standing.alarms for standing in pick.standings)
    return reports.join([name, reports.tag("br"), reports.badge("alarm", False)]) if alarmed else name


def _name(evaluation: Evaluation, prompt: Prompt, before: VariantScores | None, lead: VariantScores) -> Html:
    value = float(evaluation.column(lead, "clip_t", [prompt])[0])
    if before:
        value -= float(evaluation.column(before, "clip_t", [prompt])[0])
    label = format_score(value, metric_spec("clip_t"), signed=before is not None)
    return reports.join([prompt.prompt, reports.tag("br"), reports.badge(label)])


def _cell(
    evaluation: Evaluation, prompt: Prompt, arm: VariantScores, seeds: Sequence[int], pictures: SampleImages
) -> Html:
    parts = []
    for seed in seeds:
        key = (prompt.id, seed)
        if key not in arm.files:
            continue
        alt = f"{prompt.prompt}, seed {seed}, {arm.name}"
        score = arm.scores.get("clip_t", {}).get(key, math.nan)
        label = reports.badge(
            format_score(score, metric_spec("clip_t")), _beats_base(evaluation, arm, key, score)
        )
        parts.append(reports.tag("div", pictures.cell(arm.files[key], alt), label, class_="shot"))
    return reports.tag("div", *parts, class_="shots")


def _beats_base(evaluation: Evaluation, arm: VariantScores, key: SampleKey, score: float) -> bool | None:
    """Whether a picture scores visibly better or worse than the base's."""
    base = evaluation.base
    before = base.scores.get("clip_t", {}).get(key) if base and base is not arm else None
    return None if before is None or abs(score - before) < _VISIBLE_DIFFERENCE else score > before


def alarm_examples(evaluation: Evaluation, arm: VariantScores, alarm: Alarm, root: Path) -> Html:
    """The pictures that raised an alarm, each beside the training image or the base's picture."""
    pictures = SampleImages(root, 100)
    by_id = {prompt.id: prompt for prompt in evaluation.prompts}
    parts = []
    for key in alarm.examples:
        beside, about = _comparison_image(evaluation, arm, alarm, key)
        if beside is None or key not in arm.files:
            continue
        prompt = by_id[key[0]].prompt
        said = f"{prompt}, seed {key[1]}: {about}"
        parts.append(
            reports.tag(
                "div",
                pictures.cell(arm.files[key], f"{prompt}, seed {key[1]}, {arm.name}", PAIR_WIDTH),
                pictures.cell(beside, about, PAIR_WIDTH),
                reports.tag("div", said, class_="said"),
                class_="pair",
            )
        )
    return reports.tag("div", *parts, class_="pairs") if parts else Html()


def _comparison_image(
    evaluation: Evaluation, arm: VariantScores, alarm: Alarm, key: SampleKey
) -> tuple[str | None, str]:
    if alarm.kind in ("copy", "rote") and evaluation.training is not None and key in arm.lookalikes:
        name = arm.lookalikes[key]
        value = format_score(arm.scores["nearest"][key], metric_spec("nearest"))
        return f"{evaluation.training}/{name}", f"training image {name} at the right, similarity {value}"
    if alarm.kind == "drift" and evaluation.base:
        value = format_score(arm.scores["drift"][key], metric_spec("drift"))
        return evaluation.base.files.get(key), f"the base's picture at the right, drift {value}"
    return None, ""


def evaluation_contact_sheet(
    evaluation: Evaluation, before: VariantScores | None, lead: VariantScores, root: Path
) -> Image.Image:
    """For each prompt a row: its seeds before at the left, if there is a before, and the same seeds after."""
    pictures = SampleImages(root, 1)
    ranked = rank_prompts(evaluation, before, lead)[:SHEET_PROMPTS]
    width = max(min(len(prompt.seeds), SHEET_SEEDS) for prompt in ranked)
    cells: list[list[Image.Image | None]] = []
    for prompt in ranked:
        row: list[Image.Image | None] = []
        for arm in [before, lead] if before else [lead]:
            files = [arm.files.get((prompt.id, seed)) for seed in prompt.seeds[:SHEET_SEEDS]]
            shots = [pictures.open(file) if file else None for file in files]
            row += [*([None] if row else []), *shots, *[None] * (width - len(shots))]
        cells.append(row)
    blank = [""] * (width - 1)
    heads = [before.name, *blank, "", lead.name, *blank] if before else [lead.name, *blank]
    names = [prompt.prompt for prompt in ranked]
    return reports.contact_sheet(cells, column_heads=heads, row_heads=names, cell=SHEET_CELL)
