"""The loop over the images that get a mask or a control: one that fails or is stopped loses no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_tools.scan import replace_notes
from lorakit.core.progress import track_progress
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record

GENERATION_FAILED = "conditioning_not_generated"

Save = Callable[[list[Record]], None]


def update_records(
    records: Sequence[Record],
    todo: Sequence[Record],
    update: Callable[[Record], Record],
    *,
    label: str,
    quiet: bool,
    save: Save | None = None,
) -> list[Record]:
    """Return the records with those of `todo` updated; an image that cannot be read gets a note instead.

    If the work is interrupted, `save` gets the records of the images that are done.
    """
    updated: dict[str, Record] = {}

    def merged() -> list[Record]:
        return [updated.get(record.file, record) for record in records]

    try:
        for record in track_progress(todo, label, len(todo), quiet=quiet):
            plain = replace_notes(record, (GENERATION_FAILED,), [])
            try:
                updated[record.file] = update(plain)
            except ImageError as error:
                note = f"{GENERATION_FAILED}: {error.reason}"
                updated[record.file] = replace_notes(plain, (GENERATION_FAILED,), [note])
    except BaseException:
        if updated and save is not None:
            save(merged())
        raise
    return merged()
