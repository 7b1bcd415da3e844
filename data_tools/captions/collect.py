"""Collect the captions of each image: from files beside it, metadata, its folder's name, or a template.

The order is: caption files, metadata, captions of a model, folder names, template. Captions of the user are
replaced only on request. Nothing is changed or left out silently: text that cannot be read is a note with its
position, and so is a change (joined lines, removed characters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from data_tools.captions import edits
from data_tools.captions.columns import COLUMNS_UNREAD
from data_tools.captions.embedded_text import EMBEDDED_TEXT, embedded_caption
from data_tools.captions.entries import SETTINGS_UNUSED, TAGS_UNUSED
from data_tools.captions.lines import CAPTIONS, JOINED, TAGS, check_line_mode
from data_tools.captions.metadata import ROWS_JOINED, is_metadata_file, parse_kohya_folder
from data_tools.captions.sidecars import (
    LEFT_OUT,
    UNREADABLE,
    ImageCaptions,
    SidecarOptions,
    read_sidecars,
)
from data_tools.captions.text import MOJIBAKE, UNESCAPED, clean_caption
from data_tools.captions.unread_text import find_unread_text
from data_tools.listing import CAPTION_SUFFIXES, Listing
from data_tools.scan import note_code, replace_notes, resolve_inside
from lorakit.config.concepts import fill_template, find_template_problem
from lorakit.core import prompt_syntax
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import decode
from lorakit.manifest import USER_METADATA_NOTE, Caption, Record, change_record

REREAD_SOURCES = ("file", "metadata", "folder", "template")  # collected again in every run
NOTES = frozenset(
    {
        JOINED,
        TAGS,
        CAPTIONS,
        MOJIBAKE,
        "caption_control_characters",
        "caption_conflict",
        "caption_empty",
        UNESCAPED,
        TAGS_UNUSED,
        SETTINGS_UNUSED,
        COLUMNS_UNREAD,
        ROWS_JOINED,
        UNREADABLE,
        LEFT_OUT,
        "caption_trigger_filled",
        "user_metadata",
    }
)
CAPTIONS_REPLACED = "captions_replaced"  # note of images whose own captions a model's have replaced
TRIGGER_FILLED = "caption_trigger_filled"


@dataclass(frozen=True)
class CaptionOptions:
    """Sources of captions. The `template` is the caption of images that have none; by default it is
    "a photo of {trigger} {class_noun}".

    With `caption_extension`, only caption files whose names end so are read (".txt", ".tags",
    "_caption.txt"); with `caption_columns`, only these columns of tables and keys of JSON files.
    `caption_from_image` reads the description inside the image file. `caption_edits` (edits.py) apply to
    every caption; None means the edits that the manifest records.
    """

    class_noun: str | None = None
    trigger: str | None = None
    template: str | None = None
    caption_from_folder: bool = False
    caption_from_image: bool = False
    overwrite_captions: bool = False
    allow_missing_captions: bool = False
    caption_encoding: str = "utf-8"
    caption_extension: str | None = None
    caption_lines: str = "auto"
    caption_columns: tuple[str, ...] = ()
    caption_edits: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any file is read."""
        if problem := find_template_problem(self.template or "", self.trigger, self.class_noun):
            remedy = 'for example "a photo of {trigger} {class_noun}", with --trigger and --class-noun'
            raise ConfigError(f"{self.template!r}: {problem}", where="--caption-template", remedy=remedy)
        if self.overwrite_captions and self.template_caption() is None and not self.caption_from_folder:
            remedy = "give --class-noun, --trigger or --caption-from-folder for the new caption"
            raise ConfigError(
                "--overwrite-captions without a new caption", where="overwrite-captions", remedy=remedy
            )
        if self.caption_extension is not None and self.caption_extension[:1] not in (".", "_", "-"):
            raise ConfigError(
                f"{self.caption_extension!r} is not an extension of caption files",
                where="caption-extension",
                remedy=f"use one of {', '.join(CAPTION_SUFFIXES)}, or an end of names such as _caption.txt",
            )
        check_line_mode(self.caption_lines)
        edits.check_edits(self.caption_edits or ())

    def sidecar_options(self) -> SidecarOptions:
        """Return the options of caption files."""
        return SidecarOptions(
            self.caption_extension, self.caption_encoding, self.caption_lines, self.caption_columns
        )

    def template_caption(self) -> Caption | None:
        """Return the caption for images without one, or None; its prompt is the template with names of words.

        Without a trigger word the template has no place for one.
        """
        text = fill_template(self.template, self.trigger, self.class_noun)
        if text is None:
            return None
        trigger = "{trigger}" if self.trigger else None
        return Caption(text, "template", prompt=fill_template(self.template, trigger, "{class_noun}"))


def collect_captions(listing: Listing, records: Sequence[Record], options: CaptionOptions) -> list[Record]:
    """Return the records with captions, tags and repeats; text that cannot be read is a note of its image.

    The captions in tables are those of the listing (`metadata.with_tables`).
    """
    options.check()
    if options.caption_extension is not None:
        _require_extension(listing, options.caption_extension)
    return [_collect_for_record(listing, record, options) for record in records]


def _require_extension(listing: Listing, extension: str) -> None:
    """Raise `DataError` if there are caption files, but none with this extension."""
    others = [name for name in sorted(listing.sidecars) if not name.lower().endswith(extension.lower())]
    has_others = any(name.lower().endswith(extension.lower()) for name in listing.other_files)
    if others and len(others) == len(listing.sidecars) and not has_others:
        other = PurePosixPath(others[0]).suffix.lower()
        raise DataError(
            f"there are no {extension} files, but {len(others)} with {other}: {', '.join(others[:3])}",
            where=str(listing.root),
            remedy=f"give --caption-extension {other}, or leave it out to read them all",
        )


def apply_edits_to_records(records: Sequence[Record], options: CaptionOptions) -> list[Record]:
    """Return the records with edited captions, for captions that were made after `collect_captions`."""
    edited = []
    for record in records:
        captions, notes = _apply_edits(record.captions, record, options)
        edited.append(replace(record, captions=tuple(captions), notes=(*record.notes, *notes)))
    return edited


def files_without_caption(records: Sequence[Record]) -> list[str]:
    """Return the kept images without a caption."""
    return [record.file for record in records if record.keep and not record.caption]


def require_captions(records: Sequence[Record], listing: Listing) -> None:
    """Raise `DataError` naming the kept images without a caption, and the text that could not be used."""
    without = files_without_caption(records)
    if not without:
        return
    kept = sum(record.keep for record in records)
    empty = sum(any(note.startswith("caption_empty") for note in r.notes) for r in records if r.keep)
    examples = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
    unread = [finding.message for finding in find_unread_text(listing, records) if finding.level == "warning"]
    raise DataError(
        f"{len(without)} of {kept} images have no caption"
        + (f" ({empty} caption files are empty)" if empty else "")
        + f": {examples}"
        + "".join(f"\n  not used: {message}" for message in unread[:5]),
        where=str(listing.root),
        remedy="write a .txt file beside each image, or name the subject: --class-noun dog --trigger sks",
    )


def _collect_for_record(listing: Listing, record: Record, options: CaptionOptions) -> Record:
    """Collect for one image, from the files beside it and from tables."""
    known = [caption.text for caption in record.captions]
    collected = read_sidecars(listing, record.file, options.sidecar_options(), known)
    used = "the caption file"
    for caption in listing.tables.captions.get(record.file, ()):
        if is_metadata_file(caption.table):
            collected.notes.append(USER_METADATA_NOTE)
        collected.notes += caption.notes
        collected.tags = collected.tags or list(caption.tags)
        if not collected.captions and caption.texts:
            collected.captions = [Caption(text, "metadata") for text in caption.texts]
            used = caption.table
        elif not set(caption.texts) <= {known.text for known in collected.captions}:
            message = f"caption_conflict: {caption.table} has another caption; {used} is used"
            collected.notes.append(message)
    if options.caption_from_image and not collected.captions:
        collected.captions = _from_image(listing, record)
    folder_caption = _from_folder(record.file, collected, use_folder_names=options.caption_from_folder)
    captions = _select_sources(collected.captions, folder_caption, record, options)
    captions, notes = _apply_edits(captions, record, options)
    with_notes = replace_notes(record, NOTES, list(dict.fromkeys([*collected.notes, *notes])))
    return change_record(
        with_notes,
        captions=tuple(captions),
        tags=tuple(collected.tags) or record.tags,
        repeats=collected.repeats if collected.repeats > 1 else record.repeats,
    )


def _select_sources(
    written: Sequence[Caption], folder: Caption | None, record: Record, options: CaptionOptions
) -> list[Caption]:
    """Return the captions to use: of the user, else of a model, else the folder's name, else the template.

    `written` are those in files and metadata now; captions of a model, and an earlier template, are in the
    record. A model's captions that were added to the user's stay beside them.
    """
    earlier = record.captions
    template = options.template_caption()
    # An exported dataset has the same captions in files and manifest.
    previous_by_text = {clean_caption(caption.text, "")[0]: caption for caption in earlier}
    user_captions = [previous_by_text.get(caption.text, caption) for caption in written]
    others = [_unescaped(c) for c in earlier if c.source not in REREAD_SOURCES and c not in user_captions]
    if others and any(note_code(note) == CAPTIONS_REPLACED for note in record.notes):
        user_captions = []  # the user replaced them by a model's captions
    if options.overwrite_captions:
        if folder and options.caption_from_folder:
            return [folder]
        if template:
            return [template]
    if user_captions or others:
        return [*user_captions, *others]
    if folder:
        return [folder]
    if template:
        return [template]
    return [caption for caption in earlier if caption.source == "template"]


def _unescaped(caption: Caption) -> Caption:
    """Return an earlier caption with plain parentheses, as in those that are read now."""
    original = caption.original_text
    return replace(
        caption,
        text=prompt_syntax.unescape_parentheses(caption.text),
        original_text=None if original is None else prompt_syntax.unescape_parentheses(original),
    )


def _apply_edits(
    captions: Sequence[Caption], record: Record, options: CaptionOptions
) -> tuple[list[Caption], list[str]]:
    """Return the edited captions and notes; the edits are those of the options, else the recorded ones."""
    recorded = {(c.source, c.model): c.edits for c in reversed(record.captions)}
    edited, notes = [], []
    for caption_index, caption in enumerate(captions):
        specs = (
            recorded.get((caption.source, caption.model), ())
            if options.caption_edits is None
            else options.caption_edits
        )
        specs = _with_trigger(specs, caption, options.trigger)
        changed = (
            edits.edit_caption(caption, specs, record.file, caption_index)
            if specs or caption.edits
            else caption
        )
        if any(spec.startswith(f"{edits.FILL_TRIGGER}=") for spec in changed.edits):
            notes.append(
                f"{TRIGGER_FILLED}: the trigger word is in place of [trigger] in {changed.text[:60]!r}"
            )
        if changed.text:
            edited.append(changed)
        else:
            notes.append(f"caption_empty: the edits leave nothing of {caption.text[:60]!r}")
    return edited, notes


def _with_trigger(specs: tuple[str, ...], caption: Caption, trigger: str | None) -> tuple[str, ...]:
    """Return the edits with one that fills `[trigger]`, if the caption has it and the trigger is given."""
    raw = caption.text if caption.original_text is None else caption.original_text
    if not (trigger and trigger.strip() and prompt_syntax.has_trigger_placeholder(raw)):
        return specs
    others = [spec for spec in specs if not spec.startswith(f"{edits.FILL_TRIGGER}=")]
    return (f"{edits.FILL_TRIGGER}={trigger.strip()}", *others)


def _from_image(listing: Listing, record: Record) -> list[Caption]:
    """Return the description inside the image file, of which the scan has noted that there is one."""
    if not any(note_code(note) == EMBEDDED_TEXT for note in record.notes):
        return []
    data = decode.read_file(resolve_inside(listing.root, record.file))
    text = clean_caption(embedded_caption(data), record.file)[0]
    return [Caption(text, "file")] if text else []


def _from_folder(file: str, collected: ImageCaptions, *, use_folder_names: bool) -> Caption | None:
    """Take repeats from a kohya folder (`10_name`); return the caption of such, or of any, folder name."""
    folder = PurePosixPath(file).parent.name
    if counted := parse_kohya_folder(folder):
        collected.repeats, folder = counted
    elif not use_folder_names:
        return None
    text = clean_caption(folder.replace("_", " "), folder)[0]
    return Caption(text, "folder") if text else None
