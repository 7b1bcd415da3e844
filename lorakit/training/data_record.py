"""The table of a run's concepts, and its held-out images: lines of the log, entries of run.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lorakit.config.caption_use import CaptionUse
from lorakit.config.concepts import Concept
from lorakit.core.tables import format_table
from lorakit.core.words import has_word
from lorakit.data import fingerprints
from lorakit.data.items import DatasetItem
from lorakit.training.caption_checks import describe_caption_use
from lorakit.training.run_folder import RunFolder
from lorakit.training.run_plan import DataPlan

COLUMNS = (
    "folder",
    "trigger",
    "images",
    "held out",
    "repeats",
    "weight",
    "captions with trigger",
    "samples per epoch",
    "steps per epoch",
)
TEXT_COLUMNS = ("folder", "trigger")


def record_data(run: RunFolder, plan: DataPlan, total_batch_size: int, log: Callable[[str], None]) -> None:
    """Log the table of concepts, and write it and the held-out images into run.json."""
    rows = list(concept_rows(plan, total_batch_size))
    table = format_table(COLUMNS, table_cells(rows), numeric=[c for c in COLUMNS if c not in TEXT_COLUMNS])
    log(table)
    for line in caption_lines(rows):
        log(line)
    held_out = _held_out_entry(plan.split.held_out)
    before = run.record().get("held_out", held_out)
    if before != held_out:
        log(
            "warning: the held-out images are not those of the earlier sessions: their losses cannot be"
            " compared"
        )
    run.update_record(concepts=rows, held_out=held_out)


def concept_rows(plan: DataPlan, total_batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield an entry of run.json for each concept; an epoch contains each of its samples once."""
    for concept in dict.fromkeys(item.concept for item in plan.items):
        items = [item for item in plan.items if item.concept == concept]
        trained = [item for item in plan.split.train if item.concept == concept]
        captions = [caption.text for item in trained for caption in item.record.captions]
        samples = sum(item.repeats for item in trained)
        use = concept.caption_use or CaptionUse()
        yield {
            "folder": concept.folder.name,
            "trigger": concept.trigger,
            "images": len(items),
            "held_out": sum(item.concept == concept for item in plan.split.held_out),
            "repeats": concept.repeats,
            "weight": concept.weight,
            "captions": len(captions),
            "captions_with_trigger": _count_with_trigger(concept, captions),
            "samples_per_epoch": samples,
            "steps_per_epoch": round(samples / total_batch_size, 2),
            "caption_use": describe_caption_use([item.record for item in trained], use),
        }


def caption_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line about the use of the captions of each concept, without the folder if there is one."""
    if len(rows) == 1:
        return [f"captions: {rows[0]['caption_use']}"]
    return [f"captions of {row['folder']}: {row['caption_use']}" for row in rows]


def table_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the cells of the table of concepts, without None."""
    return [
        [
            row["folder"],
            row["trigger"] or "-",
            str(row["images"]),
            str(row["held_out"]),
            str(row["repeats"]),
            f"{row['weight']:g}",
            f"{row['captions_with_trigger']} of {row['captions']}" if row["trigger"] else "-",
            str(row["samples_per_epoch"]),
            f"{row['steps_per_epoch']:g}",
        ]
        for row in rows
    ]


def _count_with_trigger(concept: Concept, captions: Sequence[str]) -> int:
    return sum(has_word(text, concept.trigger) for text in captions) if concept.trigger else 0


def _held_out_entry(items: Sequence[DatasetItem]) -> dict[str, Any]:
    return {
        "images": len(items),
        "fingerprint": fingerprints.dataset_fingerprint([item.record for item in items]) if items else None,
    }
