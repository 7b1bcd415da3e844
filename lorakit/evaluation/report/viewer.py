"""The viewer of a page: all images in it, its columns, its filters, and the references beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lorakit.evaluation.alarms.training_images import copied_keys
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report.number_format import format_score
from lorakit.evaluation.report.ranking import RankedPrompt, typical_seeds
from lorakit.evaluation.report.variants import SampleImages, variant_badges, variant_key
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection
from lorakit.reports import Badge, Choice, EmbeddedImage, Level, Link, Shot, ViewedImage, Viewer, file_link

MAX_IMAGES = 400  # of the viewer, which contains them all: about 12 MB
MAX_SEEDS = 4  # of a prompt
# (up to so many images, pixels of each)
STORED_WIDTHS = ((80, 640), (160, 512), (240, 384), (MAX_IMAGES, 320))
MAX_REFERENCES, REFERENCE_WIDTH = 6, 120  # beside the samples, in CSS pixels
SIGNS: dict[Level, str] = {"note": "·", "good": "✓", "warn": "!", "bad": "✕"}  # the worst last
FACT_METRICS = ("clip_t",)  # below each image, besides the fidelity metric


def evaluation_viewer(
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
    levels: list[Level] = [badge.level or "note" for badge in badges]
    text = "".join(dict.fromkeys(SIGNS[level] for level in levels))
    worst = max(levels, key=list(SIGNS).index, default=None)
    badge = Badge(text, worst, ", ".join(one.text for one in badges)) if badges else None
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
    """Return the images of one prompt and seed; `copies` are the copied images of each variant."""
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
