"""The images of a page: the viewer with its note, and the overview of all variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.data.prompts import Prompt
from lorakit.evaluation.report.number_format import format_count
from lorakit.evaluation.report.ranking import RankedPrompt, rank_prompts, typical_seeds
from lorakit.evaluation.report.variants import (
    SampleImages,
    best_variant,
    variant_badges,
    variant_key,
    viewed_variants,
)
from lorakit.evaluation.report.viewer import evaluation_viewer
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.reports import Badge, EmbeddedImage, Grid, GridRow, Jump, Viewer

OVERVIEW_PROMPTS, THUMBNAIL = 6, 104  # thumbnails in CSS pixels


@dataclass(frozen=True)
class Gallery:
    """The images of an evaluation for a page: the viewer, its note, and the overview of all variants."""

    viewer: Viewer
    note: str
    overview: Grid | None = None


def evaluation_gallery(evaluation: Evaluation, root: Path, selection: Selection | None) -> Gallery:
    """Return the viewer of all variants, and their overview if there are several to choose from."""
    best, images = best_variant(evaluation, selection), SampleImages(root)
    variants = viewed_variants(evaluation, selection, best)
    ranked = rank_prompts(evaluation, best)
    pair = [evaluation.base or variants[0], best]
    viewer = evaluation_viewer(evaluation, variants, ranked, images, selection, pair)
    overview = None
    if len(evaluation.variants) > 2:
        overview = _overview(evaluation, ranked, images, selection, variants)
    return Gallery(viewer, _note(evaluation, viewer, best), overview)


def comparison_gallery(evaluation: Evaluation, root: Path) -> Gallery:
    """Return the viewer of two variants."""
    first, second = evaluation.variants
    ranked = rank_prompts(evaluation, second)
    viewer = evaluation_viewer(evaluation, [first, second], ranked, SampleImages(root), None, [first, second])
    return Gallery(viewer, _note(evaluation, viewer, second))


def _note(evaluation: Evaluation, viewer: Viewer, best: VariantScores) -> str:
    total = sum(len(variant.files) for variant in evaluation.variants)
    hidden = total - sum(viewed.image is not None for shot in viewer.shots for viewed in shot.images)
    more = f" {format_count(hidden, 'more image')} only in the folder of this page." if hidden > 0 else ""
    return (
        f"Same prompt and noise in every column. Prompts are ordered by fidelity and prompt adherence of "
        f"{best.name}, the best first. The arrow keys step through the row that has the focus: checkpoints, "
        f"views or prompts. A click enlarges an image.{more}"
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
