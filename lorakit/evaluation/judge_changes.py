"""Judges that differ between two evaluations: their figures cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.core.errors import DataError, LorakitError
from lorakit.evaluation.feature_cache import TEXT_LISTS
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.score_table import SCORES_FILE, Evaluation, VariantScores, load_evaluation

WEIGHTS = ("revision", "weights_sha256", "detector_sha256")
_ESSENTIAL = ("clip_model", "image_encoder", "mask_model")
_SHOWN = 12  # characters of a hash


def settings_before(root: Path) -> dict[str, Any]:
    """Return the settings of the evaluation that a folder holds already; empty if it holds none."""
    try:
        return load_evaluation(root).settings if (root / SCORES_FILE).is_file() else {}
    except LorakitError:  # of another version, or damaged: it is written again
        return {}


def weight_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each judge of the same name in two settings whose weights are not the same."""
    sentences = []
    for name, old, new in _in_both(before, after):
        if old.get("model") != new.get("model"):
            continue
        changed = [key for key in WEIGHTS if old.get(key) and new.get(key) and old[key] != new[key]]
        if changed:
            key = "weights_sha256" if "weights_sha256" in changed else changed[0]
            one, other = (str(value[key])[:_SHOWN] for value in (old, new))
            sentences.append(
                f"The weights of {name} ({new.get('model')}) are not those of the evaluation before"
                f" ({key}: {one} → {other}): its figures cannot be compared with earlier ones."
            )
    return sentences


def check_same_judges(first: Evaluation, second: Evaluation) -> None:
    """Raise DataError if CLIP, the image encoder or the mask model differ: no figure could be compared."""
    changed = weight_changes(*({key: e.settings.get(key) for key in _ESSENTIAL} for e in (first, second)))
    if changed:
        raise DataError(
            changed[0], where=f"{first.title}, {second.title}", remedy="evaluate both with the same weights"
        )
    for name in _ESSENTIAL:
        one, two = (_comparable(evaluation.settings.get(name)) for evaluation in (first, second))
        if differing := [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]:
            raise DataError(
                f"the two were scored with different settings of {name}: {', '.join(sorted(differing))}",
                where=f"{first.title}, {second.title}",
                remedy="evaluate both with the same models",
            )


def without_changed_metrics(
    first: Evaluation, second: Evaluation, variants: list[VariantScores]
) -> tuple[list[VariantScores], list[str]]:
    """Leave out the metrics whose own judge differs between two evaluations; returns notes that name them."""
    changed = []
    for name in sorted({name for variant in variants for name in variant.scores}):
        judge = "face_model" if name == "face_identity" else "copy_detector" if name == "sscd" else name
        one, two = (evaluation.settings.get(judge) for evaluation in (first, second))
        if isinstance(one, dict) and isinstance(two, dict) and _comparable(one) != _comparable(two):
            changed.append(name)
    kept = [
        replace(v, scores={name: values for name, values in v.scores.items() if name not in changed})
        for v in variants
    ]
    notes = [
        f"{metric_spec(name).title} is left out, because the two were scored by different models or settings."
        for name in changed
    ]
    return kept, notes


def _in_both(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    return [
        (name, before[name], after[name])
        for name in before.keys() & after.keys()
        if isinstance(before[name], dict) and isinstance(after[name], dict)
    ]


def _comparable(settings: Any) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if key not in TEXT_LISTS}
