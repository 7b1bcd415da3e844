"""Reading of the facts of a run from its recipe, record and dataset; none fails an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorakit.config.recipe import Recipe
from lorakit.core import rng
from lorakit.core.errors import ConfigError, DataError, first_line
from lorakit.core.words import has_word
from lorakit.data.items import DatasetItem, load_concepts
from lorakit.data.subjects import concept_subjects, replace_triggers
from lorakit.evaluation.caption_match import FloatArray, find_subject_groups, measure_caption_match
from lorakit.evaluation.feature_cache import FrameSource, cached_features
from lorakit.evaluation.run_facts import ConceptFacts, RunFacts, SubjectGroups
from lorakit.imaging import decode, near_duplicates
from lorakit.models.clip_score import ClipScorer
from lorakit.training.held_out import near_pairs_of, split_dataset

MAX_COMPARED = 64  # images whose captions are compared; more make the interval hardly narrower


def read_run_facts(
    recipe: Recipe, record: Mapping[str, Any], clip: ClipScorer | None = None, *, quiet: bool = False
) -> RunFacts:
    """Return the facts of a run; `record` is its run.json.

    Without its dataset the numbers in `record` remain. With `clip`, captions are compared with their images.
    """
    settings = _read_settings(recipe, record)
    if recipe.slider:
        return replace(settings, unknown=("a slider trains without captions",))
    try:
        items = _trained_items(recipe)
    except (DataError, ConfigError, OSError) as error:
        concepts = _recorded_concepts(record)
        reason = f"the dataset cannot be read: {first_line(error)}"
        return replace(settings, concepts=concepts, unknown=(reason,))
    facts = replace(settings, **_read_dataset(recipe, items))
    if clip is None:
        return facts
    try:
        return _compare_captions(facts, recipe, items, clip, quiet)
    except (DataError, OSError) as error:
        reason = f"captions were not compared with images: {first_line(error)}"
        return replace(facts, unknown=(*facts.unknown, reason))


def _read_settings(recipe: Recipe, record: Mapping[str, Any]) -> RunFacts:
    adapter, optimizer = recipe.adapter, recipe.optimizer
    processes = record.get("inputs", {}).get("num_processes", 1)
    samples = sum(row.get("samples_per_epoch", 0) for row in _rows(record))
    seen = recipe.train.steps * recipe.effective_batch * processes
    return RunFacts(
        method=adapter.type,
        rank=adapter.rank,
        alpha=adapter.alpha,
        optimizer=optimizer.name,
        lr=optimizer.lr,
        num_steps=recipe.train.steps,
        epochs=seen / samples if samples else None,
    )


def _rows(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in record.get("concepts") or [] if isinstance(row, Mapping)]


def _recorded_concepts(record: Mapping[str, Any]) -> tuple[ConceptFacts, ...]:
    """Return the facts that run.json holds; near duplicates are not known there."""
    return tuple(
        ConceptFacts(
            str(row.get("folder", "")),
            row.get("trigger"),
            int(row.get("images", 0)) - int(row.get("held_out", 0)),
            int(row.get("images", 0)) - int(row.get("held_out", 0)),
            int(row.get("captions_with_trigger", 0)),
            int(row.get("captions", 0)),
        )
        for row in _rows(record)
    )


def _trained_items(recipe: Recipe) -> list[DatasetItem]:
    items = [
        DatasetItem(data.concept, r, (0, 0, r.width, r.height), (r.width, r.height))
        for data in load_concepts(recipe.concepts)
        for r in data.records
    ]
    return split_dataset(items, recipe).train


def _read_dataset(recipe: Recipe, items: Sequence[DatasetItem]) -> dict[str, Any]:
    """Return the values of `RunFacts` that come from the dataset."""
    token = recipe.textual_inversion.token if recipe.textual_inversion else None
    concepts = []
    subject_images: list[DatasetItem] = []
    for concept in recipe.concepts:
        own = [item for item in items if item.concept == concept]
        words = [word for word in (concept.trigger, token) if word]
        triggered = [item for item in own if _has_any(item, words)]
        chosen = triggered or own
        if concept.trigger or not recipe.triggers:
            subject_images += chosen
        captions = {caption.text for item in chosen for caption in item.record.captions}
        concepts.append(
            ConceptFacts(
                concept.folder.name,
                concept.trigger,
                len(chosen),
                _count_distinct(chosen),
                len(triggered),
                len(captions),
            )
        )
    return {"num_images": _count_distinct(subject_images), "concepts": tuple(concepts)}


def _has_any(item: DatasetItem, words: Sequence[str]) -> bool:
    return any(has_word(caption.text, word) for caption in item.record.captions for word in words)


def _count_distinct(items: Sequence[DatasetItem]) -> int:
    """Return the number of images, with near duplicates (also mirrored) counted once."""
    first = {item.record.content_hash: item for item in items}
    distinct = list(first.values())
    return len(near_duplicates.connected_groups(len(distinct), near_pairs_of(distinct)))


def _compare_captions(
    facts: RunFacts, recipe: Recipe, items: Sequence[DatasetItem], clip: ClipScorer, quiet: bool
) -> RunFacts:
    """Measure the match of images and captions, and find two subjects under one trigger."""
    chosen = _sample_items(items)
    subjects = concept_subjects(recipe.concepts)
    texts = [replace_triggers(item.record.captions[0].text, subjects) for item in chosen]
    sources = [_source(item) for item in chosen]
    images = np.asarray(cached_features(clip, sources, "training images", quiet))
    captions = clip.text_features(texts).double().numpy()
    names = [item.name for item in chosen]
    match = measure_caption_match(images, captions, texts, names)
    unknown = facts.unknown
    if match is None:
        unknown += ("captions were not compared with images: too few different ones",)
    by_trigger = (_subject_groups(trigger, chosen, images, captions) for trigger in recipe.triggers)
    groups = next((groups for groups in by_trigger if groups), None)
    return replace(facts, caption_match=match, subject_groups=groups, unknown=unknown)


def _sample_items(items: Sequence[DatasetItem]) -> list[DatasetItem]:
    """Return at most `MAX_COMPARED` different images, the same ones every time."""
    distinct = {item.record.content_hash: item for item in items}
    order = sorted(distinct, key=lambda content: rng.derive_seed(0, "compared caption", content))
    return [distinct[content] for content in order[:MAX_COMPARED]]


def _source(item: DatasetItem) -> FrameSource:
    folder, record = item.folder, item.record
    return FrameSource(record.content_hash, lambda: [decode.read_record_image(folder, record)])


def _subject_groups(
    trigger: str, items: Sequence[DatasetItem], images: FloatArray, captions: FloatArray
) -> SubjectGroups | None:
    rows = [
        row for row, item in enumerate(items) if item.concept.trigger == trigger and _has_any(item, [trigger])
    ]
    names, folders = [items[row].name for row in rows], [items[row].folder.name for row in rows]
    return find_subject_groups(trigger, images[rows], captions[rows], names, folders)
