"""The images of a report: grid of prompts and variants, copies beside their originals, contact sheet."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorakit import reports
from lorakit.core.errors import LorakitError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.report.number_format import format_count, format_score
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores, metric_spec
from lorakit.evaluation.select import Selection
from lorakit.imaging.decode import decode_image
from lorakit.reports import Html

MAX_PROMPTS = 48
MAX_IMAGES = 480  # in a page, which contains them all
MAX_GRID_SEEDS = 4
WIDE_GRID = 4  # from this number of variants on only one seed of a prompt is shown
STORED_WIDTHS = ((100, 640), (240, 448), (MAX_IMAGES, 320))  # (up to so many images, pixels of each)
THUMBNAIL = 104  # CSS pixels
PAIR_WIDTH = 104  # CSS pixels: five pairs fit a row
SHEET_PROMPTS, SHEET_SEEDS, SHEET_CELL = 24, 8, 128
_VISIBLE_DIFFERENCE = 0.0005  # a smaller difference of cosines vanishes in rounding


class SampleImages:
    """Opens an evaluation's images for a page with `count` of them; a missing one becomes a badge."""

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.stored_width = next(
            (width for limit, width in STORED_WIDTHS if count <= limit), STORED_WIDTHS[-1][1]
        )

    def cell(self, file: str, alt: str, width: int = THUMBNAIL) -> Html:
        """Return an image that a click enlarges."""
        image = self.open(file)
        if image is None:
            return reports.tag("span", reports.badge("missing"))
        lossless = image.width <= 2 * THUMBNAIL  # a small image would show the blocks of a JPEG
        kind = "PNG" if lossless else "JPEG"
        return reports.embed_image(image, alt=alt, width=width, zoom_width=self.stored_width, format=kind)

    def open(self, file: str) -> Image.Image | None:
        """Return the image, or None if it cannot be read."""
        try:
            return decode_image(Path(os.path.normpath(self.root / file)))  # `root` may not exist yet
        except (OSError, LorakitError):
            return None


def sample_grid(
    evaluation: Evaluation, variants: Sequence[VariantScores], root: Path, selection: Selection | None
) -> list[Html]:
    """Return a note and a grid with a row for each prompt, the worst first, and a column for each variant."""
    best = selection.variant if selection and selection.variant else variants[-1]
    base = evaluation.base if evaluation.base in variants and best is not evaluation.base else None
    prompts = rank_prompts(evaluation, base, best)[:MAX_PROMPTS]
    num_seeds = max(1, min(MAX_GRID_SEEDS, MAX_IMAGES // max(1, len(prompts) * len(variants))))
    if len(variants) >= WIDE_GRID:
        num_seeds = 1
    images = SampleImages(root, len(prompts) * len(variants) * num_seeds)
    seeds = [_worst_seeds(prompt, best, num_seeds) for prompt in prompts]
    cells = [
        [_cell(evaluation, prompt, variant, prompt_seeds, images) for variant in variants]
        for prompt, prompt_seeds in zip(prompts, seeds, strict=True)
    ]
    column_heads = [_variant_head(variant, selection) for variant in variants]
    row_heads = [_prompt_head(evaluation, prompt, base, best) for prompt in prompts]
    num_hidden = sum(len(variant.files) for variant in variants) - sum(map(len, seeds)) * len(variants)
    hidden = f" {format_count(num_hidden, 'more image')} only in the folder." if num_hidden else ""
    order = "the smallest gain" if base else "the lowest score"
    note = f"Prompts with {order} come first. The numbers are CLIP-T. Click an image to enlarge it.{hidden}"
    return [reports.paragraph(note), reports.html_grid(column_heads, row_heads, cells)]


def rank_prompts(evaluation: Evaluation, base: VariantScores | None, variant: VariantScores) -> list[Prompt]:
    """Return the prompts by the variant's CLIP-T, or by its gain over `base`, the lowest first."""
    values = evaluation.prompt_means(variant, "clip_t", evaluation.prompts)
    if base:
        values = values - evaluation.prompt_means(base, "clip_t", evaluation.prompts)
    order = sorted(range(len(values)), key=lambda row: (not math.isfinite(values[row]), values[row]))
    return [evaluation.prompts[row] for row in order]


def _worst_seeds(prompt: Prompt, variant: VariantScores, count: int) -> list[int]:
    scores = variant.scores.get("clip_t", {})
    worst = sorted(prompt.seeds, key=lambda seed: scores.get(SampleKey(prompt.id, seed), math.inf))[:count]
    return sorted(worst)


def _variant_head(variant: VariantScores, selection: Selection | None) -> Html:
    name = reports.escape(variant.name)
    if selection is None:
        return name
    if selection.variant is variant:
        return reports.join([name, reports.tag("br"), reports.badge("selected", True)])
    if any(candidate.variant is variant and candidate.alarms for candidate in selection.candidates):
        return reports.join([name, reports.tag("br"), reports.badge("alarm", False)])
    return name


def _prompt_head(
    evaluation: Evaluation, prompt: Prompt, base: VariantScores | None, variant: VariantScores
) -> Html:
    value = float(evaluation.prompt_means(variant, "clip_t", [prompt])[0])
    if base:
        value -= float(evaluation.prompt_means(base, "clip_t", [prompt])[0])
    label = format_score(value, metric_spec("clip_t"), signed=base is not None)
    return reports.join([prompt.prompt, reports.tag("br"), reports.badge(label)])


def _cell(
    evaluation: Evaluation,
    prompt: Prompt,
    variant: VariantScores,
    seeds: Sequence[int],
    images: SampleImages,
) -> Html:
    parts = []
    for seed in seeds:
        key = SampleKey(prompt.id, seed)
        if key not in variant.files:
            continue
        alt = f"{prompt.prompt}, seed {seed}, {variant.name}"
        score = variant.scores.get("clip_t", {}).get(key, math.nan)
        good = _beats_base(evaluation, variant, key, score)
        label = reports.badge(format_score(score, metric_spec("clip_t")), good)
        parts.append(reports.tag("div", images.cell(variant.files[key], alt), label, class_="sample"))
    return reports.tag("div", *parts, class_="samples")


def _beats_base(evaluation: Evaluation, variant: VariantScores, key: SampleKey, score: float) -> bool | None:
    """Return True or False if the image scores visibly better or worse than the base model's, else None."""
    base = evaluation.base
    base_score = base.scores.get("clip_t", {}).get(key) if base and base is not variant else None
    if base_score is None or abs(score - base_score) < _VISIBLE_DIFFERENCE:
        return None
    return score > base_score


@dataclass(frozen=True)
class _Counterpart:
    """The image to show beside an example of an alarm, and its caption."""

    file: str
    caption: str


def alarm_examples(evaluation: Evaluation, variant: VariantScores, alarm: Alarm, root: Path) -> Html:
    """Return the examples of an alarm, each beside the training image or the base model's image."""
    images = SampleImages(root, 100)
    prompts = {prompt.id: prompt.prompt for prompt in evaluation.prompts}
    pairs = []
    for key in alarm.examples:
        counterpart = _find_counterpart(evaluation, variant, alarm, key)
        if counterpart is None or key not in variant.files:
            continue
        title = f"{prompts[key.prompt_id]}, seed {key.seed}"
        pairs.append(
            reports.tag(
                "div",
                images.cell(variant.files[key], f"{title}, {variant.name}", PAIR_WIDTH),
                images.cell(counterpart.file, counterpart.caption, PAIR_WIDTH),
                reports.tag("div", f"{title}: {counterpart.caption}", class_="caption"),
                class_="pair",
            )
        )
    return reports.tag("div", *pairs, class_="pairs") if pairs else Html()


def _find_counterpart(
    evaluation: Evaluation, variant: VariantScores, alarm: Alarm, key: SampleKey
) -> _Counterpart | None:
    is_copy = alarm.name in ("copied_images", "memorization")
    if is_copy and evaluation.train_images is not None and key in variant.nearest_train_images:
        name = variant.nearest_train_images[key]
        score = variant.scores["nearest_train_similarity"][key]
        value = format_score(score, metric_spec("nearest_train_similarity"))
        caption = f"training image {name} on the right, similarity {value}"
        return _Counterpart(f"{evaluation.train_images}/{name}", caption)
    if alarm.name == "drift" and evaluation.base and key in evaluation.base.files:
        value = format_score(variant.scores["drift"][key], metric_spec("drift"))
        return _Counterpart(evaluation.base.files[key], f"base model's image on the right, drift {value}")
    return None


def evaluation_contact_sheet(
    evaluation: Evaluation, base: VariantScores | None, variant: VariantScores, root: Path
) -> Image.Image:
    """Return a sheet with a row for each prompt: the base model's images if any, then the variant's."""
    images = SampleImages(root, 1)
    prompts = rank_prompts(evaluation, base, variant)[:SHEET_PROMPTS]
    width = max(min(len(prompt.seeds), SHEET_SEEDS) for prompt in prompts)
    cells: list[list[Image.Image | None]] = []
    for prompt in prompts:
        row: list[Image.Image | None] = []
        for one in [base, variant] if base else [variant]:
            files = [one.files.get(SampleKey(prompt.id, seed)) for seed in prompt.seeds[:SHEET_SEEDS]]
            opened = [images.open(file) if file else None for file in files]
            gap = [None] if row else []
            row += [*gap, *opened, *[None] * (width - len(opened))]
        cells.append(row)
    blank = [""] * (width - 1)
    heads = [base.name, *blank, "", variant.name, *blank] if base else [variant.name, *blank]
    names = [prompt.prompt for prompt in prompts]
    return reports.contact_sheet(cells, column_heads=heads, row_heads=names, cell=SHEET_CELL)
