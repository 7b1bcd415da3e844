"""The images of a report: the viewer, the overview of all variants, alarms beside their originals."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorakit.core.errors import LorakitError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.alarms.training_images import copied_keys
from lorakit.evaluation.report.number_format import format_count, format_score
from lorakit.evaluation.report.ranking import RankedPrompt, rank_prompts, typical_seeds
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores, metric_spec
from lorakit.evaluation.select import Selection
from lorakit.imaging.decode import decode_image
from lorakit.reports import (
    Badge,
    Choice,
    EmbeddedImage,
    Grid,
    GridRow,
    Jump,
    Link,
    Pair,
    Shot,
    ViewedImage,
    Viewer,
    embed_image,
    file_link,
)

MAX_IMAGES = 400  # of the viewer, which contains them all: about 12 MB
MAX_COLUMNS = 16  # variants in the viewer
MAX_SEEDS = 4  # of a prompt
# (up to so many images, pixels of each)
STORED_WIDTHS = ((80, 640), (160, 512), (240, 384), (MAX_IMAGES, 320))
MAX_REFERENCES, REFERENCE_WIDTH = 6, 120  # beside the samples, in CSS pixels
OVERVIEW_PROMPTS, THUMBNAIL = 6, 104
PAIR_WIDTH = 96
FACT_METRICS = ("clip_t",)  # below each image, besides the fidelity metric


class SampleImages:
    """Opens an evaluation's images; the paths are relative to `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def embed(self, file: str, alt: str, width: int, stored_width: int | None = None) -> EmbeddedImage | None:
        """Return an image, which a click enlarges if `stored_width` is set; None if it is missing."""
        image = self.open(file)
        return embed_image(image, alt=alt, width=width, zoom_width=stored_width) if image else None

    def open(self, file: str) -> Image.Image | None:
        """Return the image, or None if it cannot be read."""
        try:
            return decode_image(Path(os.path.normpath(self.root / file)))  # `root` may not exist yet
        except (OSError, LorakitError):
            return None


@dataclass(frozen=True)
class Gallery:
    """The images of an evaluation for a page: the viewer, its note, and the overview of all variants."""

    viewer: Viewer
    note: str
    overview: Grid | None = None


def variant_key(evaluation: Evaluation, variant: VariantScores) -> str:
    """Return the name of a variant in anchors and style rules, whatever characters its own name has."""
    return f"v{next(i for i, one in enumerate(evaluation.variants) if one is variant)}"


def variant_badges(variant: VariantScores, selection: Selection | None) -> list[Badge]:
    """Return what is special about a variant: selected, its alarms, another origin, stopped early."""
    badges = [Badge("selected", "good")] if selection and selection.variant is variant else []
    for candidate in selection.candidates if selection else ():
        if candidate.variant is variant:
            levels = {"alarm": "bad", "warning": "warn"}
            badges += [Badge(a.title, levels[a.level], a.message) for a in candidate.alarms]  # type: ignore[arg-type]
    badges += [Badge("other origin", "note")] if variant.is_guest else []
    badges += (
        [Badge("stopped early", "note", "worse than the best beyond chance")] if variant.stopped_early else []
    )
    return badges


def best_variant(evaluation: Evaluation, selection: Selection | None) -> VariantScores:
    """Return the variant that the page is about: the selected one, else the best, else the last."""
    if selection and (selection.variant or selection.best):
        return selection.variant or selection.best or evaluation.variants[-1]
    return evaluation.adapter_variants[-1] if evaluation.adapter_variants else evaluation.variants[-1]


def evaluation_gallery(evaluation: Evaluation, root: Path, selection: Selection | None) -> Gallery:
    """Return the viewer of all variants, and their overview if there are several to choose from."""
    best, images = best_variant(evaluation, selection), SampleImages(root)
    variants = viewed_variants(evaluation, selection, best)
    ranked = rank_prompts(evaluation, best)
    pair = [evaluation.base or variants[0], best]
    viewer = _viewer(evaluation, variants, ranked, images, selection, pair)
    overview = None
    if len(evaluation.variants) > 2:
        overview = _overview(evaluation, ranked, images, selection, variants)
    return Gallery(viewer, _note(evaluation, viewer, best), overview)


def comparison_gallery(evaluation: Evaluation, root: Path) -> Gallery:
    """Return the viewer of two variants."""
    first, second = evaluation.variants
    ranked = rank_prompts(evaluation, second)
    viewer = _viewer(evaluation, [first, second], ranked, SampleImages(root), None, [first, second])
    return Gallery(viewer, _note(evaluation, viewer, second))


def viewed_variants(
    evaluation: Evaluation, selection: Selection | None, best: VariantScores
) -> list[VariantScores]:
    """Return the variants of the viewer: all of them, or those that matter and some evenly between."""
    variants = evaluation.variants
    if len(variants) <= MAX_COLUMNS:
        return variants
    ties = set(selection.tied_with) if selection else set()
    needed = [v for v in variants if v in (evaluation.base, best) or v.is_guest or v.name in ties]
    rest = [variant for variant in variants if variant not in needed]
    count = max(2, MAX_COLUMNS - len(needed))
    between = {round(i * (len(rest) - 1) / (count - 1)) for i in range(count)}
    kept = [*needed[:MAX_COLUMNS], *(rest[i] for i in sorted(between))]
    return [variant for variant in variants if variant in kept]


def _viewer(
    evaluation: Evaluation,
    variants: Sequence[VariantScores],
    ranked: Sequence[RankedPrompt],
    images: SampleImages,
    selection: Selection | None,
    pair: Sequence[VariantScores],
) -> Viewer:
    max_prompts = max(1, MAX_IMAGES // len(variants))
    prompts = _spread(ranked, max_prompts)
    num_seeds = max(1, min(MAX_SEEDS, MAX_IMAGES // (len(prompts) * len(variants))))
    chosen = [(one, typical_seeds(evaluation, pair[1], one.prompt, num_seeds)) for one in prompts]
    num_images = sum(len(seeds) for _, seeds in chosen) * len(variants)
    width = next((width for limit, width in STORED_WIDTHS if num_images <= limit), STORED_WIDTHS[-1][1])
    kinds = list(dict.fromkeys(one.prompt.kind for one in prompts))
    copies = [set(copied_keys(evaluation, variant)) for variant in variants]
    shots = [
        _shot(evaluation, variants, one, seed, images, width, f"kind-{kinds.index(one.prompt.kind)}", copies)
        for one, seeds in chosen
        for seed in seeds
    ]
    columns = [_column(evaluation, variant, selection) for variant in variants]
    start = next((i for i, shot in enumerate(shots) if "typical" in shot.filters), 0)
    first, second = (next(i for i, one in enumerate(variants) if one is variant) for variant in pair)
    references = _references(evaluation, images)
    return Viewer(columns, shots, _filters(shots, kinds), first, second, start, references)


def _spread(ranked: Sequence[RankedPrompt], count: int) -> list[RankedPrompt]:
    """Return at most `count` of the prompts, the first and the last among them."""
    if len(ranked) <= count:
        return list(ranked)
    return [
        ranked[i] for i in sorted({round(i * (len(ranked) - 1) / max(1, count - 1)) for i in range(count)})
    ]


def _column(evaluation: Evaluation, variant: VariantScores, selection: Selection | None) -> Choice:
    """Return a variant as a choice, with a sign for what is special about it."""
    badges = variant_badges(variant, selection)
    signs = {"good": "✓", "warn": "!", "bad": "✕", "note": "·"}
    badge = Badge(signs[badges[0].level or "note"], badges[0].level, badges[0].text) if badges else None
    return Choice(variant_key(evaluation, variant), variant.name, badge=badge)


def _filters(shots: Sequence[Shot], kinds: Sequence[str]) -> list[Choice]:
    words = [(word, word) for word in ("best", "typical", "weakest")]
    named = [(f"kind-{i}", kind) for i, kind in enumerate(kinds)] if len(kinds) > 1 else []
    counts = {key: sum(key in shot.filters for shot in shots) for key, _ in [*words, *named]}
    choices = [Choice(key, label, counts[key]) for key, label in [*words, *named] if counts[key]]
    return [Choice("all", "all", len(shots)), *choices]


def _shot(
    evaluation: Evaluation,
    variants: Sequence[VariantScores],
    ranked: RankedPrompt,
    seed: int,
    images: SampleImages,
    width: int,
    kind: str,
    copies: Sequence[Collection[SampleKey]],
) -> Shot:
    """Return the images of one prompt and seed; `copies` are those of each variant that repeat a training image."""
    prompt, key = ranked.prompt, SampleKey(ranked.prompt.id, seed)
    viewed = []
    for variant, copied in zip(variants, copies, strict=True):
        file = variant.files.get(key)
        alt = f"{prompt.prompt}, seed {seed}, {variant.name}"
        image = images.embed(file, alt, width, width) if file else None
        facts: list[Badge | Link] = _facts(evaluation, variant, key)
        if key in copied:
            original = variant.training_matches[key].image
            facts.insert(0, Badge("copy", "bad", f"near-identical to the training image {original}"))
        facts += [file_link("file", file)] if file else []
        viewed.append(ViewedImage(image, facts))
    filters = [kind, *([ranked.label] if ranked.label else [])]
    level = {"best": Badge("best", "good"), "typical": Badge("typical"), "weakest": Badge("weakest", "warn")}
    return Shot(prompt.prompt, f"seed {seed}", viewed, filters, level.get(ranked.label))


def _facts(evaluation: Evaluation, variant: VariantScores, key: SampleKey) -> list[Badge | Link]:
    badges: list[Badge | Link] = []
    for name in (*FACT_METRICS, evaluation.fidelity_metric):
        if key in variant.scores.get(name, {}):
            metric = metric_spec(name)
            text = f"{metric.title} {format_score(variant.scores[name][key], metric)}"
            badges.append(Badge(text, tooltip=metric.description))
    return badges


def _references(evaluation: Evaluation, images: SampleImages) -> list[EmbeddedImage]:
    """Return some reference images, the held-out ones first."""
    table, folder = evaluation.references, evaluation.train_images
    if table is None or folder is None:
        return []
    units = sorted(table.units, key=lambda unit: unit.trained_on)
    embedded = []
    for unit in units[:MAX_REFERENCES]:
        alt = f"reference image {unit.names[0]}{'' if unit.trained_on else ', held out from the training'}"
        if image := images.embed(f"{folder}/{unit.names[0]}", alt, REFERENCE_WIDTH, 448):
            embedded.append(image)
    return embedded


def _note(evaluation: Evaluation, viewer: Viewer, best: VariantScores) -> str:
    total = sum(len(variant.files) for variant in evaluation.variants)
    hidden = total - sum(viewed.image is not None for shot in viewer.shots for viewed in shot.images)
    more = f" {format_count(hidden, 'more image')} only in the folder of this page." if hidden > 0 else ""
    return (
        f"Same prompt and noise in every column. Prompts are ordered by likeness and match of {best.name}, "
        "the best first. The arrow keys step through the row that has the focus: checkpoints, views or "
        f"prompts. A click enlarges an image.{more}"
    )


def _overview(
    evaluation: Evaluation,
    ranked: Sequence[RankedPrompt],
    images: SampleImages,
    selection: Selection | None,
    viewed: Sequence[VariantScores],
) -> Grid:
    """Return a row for each variant and a column for each of the best and the typical prompts."""
    prompts = [one for one in ranked if one.label in ("best", "typical")] or list(ranked)
    half = OVERVIEW_PROMPTS // 3
    best = [one for one in prompts if one.label == "best"][:half]
    typical = [one for one in prompts if one not in best and one.label != "best"]
    shown_prompts = [*best, *typical][:OVERVIEW_PROMPTS]
    about = best_variant(evaluation, selection)
    columns = [(one, typical_seeds(evaluation, about, one.prompt, 1)[0]) for one in shown_prompts]
    rows = []
    for variant in evaluation.variants:
        key = variant_key(evaluation, variant)
        cells = [[_thumbnail(variant, one.prompt, seed, images)] for one, seed in columns]
        jump = [Jump("show above", f"second-{key}")] if variant in viewed else []
        rows.append(GridRow([variant.name, *variant_badges(variant, selection), *jump], cells, f"at-{key}"))
    heads = [[one.prompt.prompt, *([Badge(one.label)] if one.label else [])] for one, _ in columns]
    return Grid(heads, rows, "The same prompts for every variant")


def _thumbnail(
    variant: VariantScores, prompt: Prompt, seed: int, images: SampleImages
) -> EmbeddedImage | Badge:
    file = variant.files.get(SampleKey(prompt.id, seed))
    alt = f"{prompt.prompt}, seed {seed}, {variant.name}"
    return (images.embed(file, alt, THUMBNAIL) if file else None) or Badge("missing")


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
