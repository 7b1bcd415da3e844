"""Everything worth knowing before training, worst first: defects, duplicates, sizes, names and captions."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from data_tools import duplicates
from data_tools.captions import collect, lint
from data_tools.findings import Finding, Level, sort_findings
from data_tools.listing import Listing
from data_tools.scan import SCAN_REASONS, note_code
from lorakit.manifest import Record

# Notes of the manifest that deserve more than a mention, and what to say of all images that carry one.
_NOTE_MESSAGES: dict[str, tuple[Level, str]] = {
    "alpha": ("note", "transparent parts show the background colour"),
    "blurry": ("warning", "probably out of focus or enlarged"),
    "border": ("warning", "uniform bars at two sides; the model will learn to draw them"),
    "broken_exif": ("note", "damaged EXIF block ignored"),
    "broken_icc": ("warning", "unusable colour profile ignored; colours may be off"),
    "caption_cut": ("warning", "the end of a caption is read by no text encoder; the notes name the words"),
    "caption_cut_partly": ("note", "one of the text encoders does not read a caption to its end"),
    "caption_failed": ("warning", "the captioner failed; give the command again to ask once more"),
    "captions_replaced": ("note", "a model's captions count instead of the caption files"),
    "caption_empty": ("warning", "an empty caption file"),
    "caption_joined": ("note", "several caption lines joined into one caption"),
    "caption_stripped": ("warning", "control characters left out of a caption"),
    "caption_unused": ("warning", "the metadata file and the caption file disagree; the caption file counts"),
    "given_unreadable": ("error", "a source or control that cannot be read; it is not used"),
    "given_other_shape": ("note", "a source or control of another shape than its image"),
    "clipped": ("note", "mostly pure black or white"),
    "cmyk": ("note", "CMYK without a usable profile; colours are approximate"),
    "cropped": ("warning", "loses more than a tenth to the crop"),
    "depth": ("note", "16 bits a channel scaled to 8"),
    "flat": ("warning", "one colour all over; is that a picture?"),
    "first_frame": ("note", "only the first frame is used"),
    "icc": ("note", "converted from its colour profile to sRGB"),
    "mask_ambiguous": ("warning", "a mask beside a turned picture; look whether it lies right"),
    "mask_empty": ("warning", "a mask that is black throughout; it is not used"),
    "mask_not_found": ("warning", "nothing to mask was found"),
    "mask_unfit": ("warning", "a mask that does not fit its picture; it is not used"),
    "metadata": ("note", "captioned in the user's own metadata file, which stays as it is"),
    "rotated": ("note", "turned upright by its EXIF orientation"),
    "suffix": ("note", "the content is not what the name says; used all the same"),
    "upscaled": ("note", "smaller than its bucket, so it is enlarged"),
}


def check_dataset(
    listing: Listing,
    records: Sequence[Record],
    *,
    trigger: str | None = None,
    counted: bool = False,
    held_out: Sequence[Record] = (),
) -> list[Finding]:
    """All findings, worst first; `counted` as in `lint.lint`.

    `held_out` are images of another folder that must not be trained on, their names starting with it.
    """
    found = [
        *_rejected_images(records),
        *_missing_captions(records),
        *_manifest_notes(records),
        *_duplicates(records, held_out),
        *_name_collisions(listing, records),
        *_unused_files(listing),
        *lint.lint_captions(records, trigger, counted=counted),
    ]
    return sort_findings(found)


def _rejected_images(records: Sequence[Record]) -> Iterator[Finding]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if not record.keep:
            groups[record.reason or ""].append(record)
    for reason, group in groups.items():
        own = note_code(reason) not in SCAN_REASONS
        level: Level = "note" if own else "error"
        code = "set_aside" if own else note_code(reason)
        text = reason if own else reason.partition(":")[2].strip()
        yield Finding(level, code, text, tuple(record.file for record in group))


def _missing_captions(records: Sequence[Record]) -> Iterator[Finding]:
    files = tuple(collect.files_without_caption(records))
    if files:
        yield Finding("error", "no_caption", f"{len(files)} images have no caption", files)


def _manifest_notes(records: Sequence[Record]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.keep:
            for code in dict.fromkeys(map(note_code, record.notes)):
                groups[code].append(record.file)
    for code, files in groups.items():
        level, message = _NOTE_MESSAGES.get(code, ("note", "noted in the manifest"))
        yield Finding(level, code, message, tuple(files))


def _duplicates(records: Sequence[Record], held_out: Sequence[Record]) -> Iterator[Finding]:
    own = {record.file for record in records}
    every = [*records, *held_out]
    exact, near = duplicates.find_exact_duplicates(every), duplicates.find_near_duplicates(every)
    for cluster in exact:
        if own & set(cluster.files):
            yield Finding("warning", "duplicate", "the same picture, pixel for pixel", cluster.files)
    for cluster in near:
        if own & set(cluster.files):
            message = "nearly the same picture" + (", some of it mirrored" if cluster.mirrored else "")
            yield Finding("warning", "near_duplicate", message, cluster.files)
    for cluster, splits in duplicates.find_split_leaks([*exact, *near]):
        message = f"in {' and '.join(splits)}: what is measured on one was learnt in the other"
        yield Finding("warning", "leak", message, cluster.files)
    for cluster in (*exact, *near):
        if own & set(cluster.files) and not set(cluster.files) <= own:
            message = "also among the images that are held out: what is measured on them was learnt"
            yield Finding("warning", "leak", message, cluster.files)


def _name_collisions(listing: Listing, records: Sequence[Record]) -> Iterator[Finding]:
    """Names that are distinct here and would not be on another disk."""
    folded: dict[str, list[str]] = defaultdict(list)
    stems: dict[PurePosixPath, list[str]] = defaultdict(list)
    for file in listing.images:
        folded[unicodedata.normalize("NFC", file).casefold()].append(file)
        stems[PurePosixPath(file).with_suffix("")].append(file)
    refused = {record.file for record in records if note_code(record.reason) == "name_collision"}
    for files in folded.values():
        if len(files) > 1:
            message = "names that differ only in case or accents; other disks cannot hold both"
            yield Finding("warning", "name_clash", message, tuple(files))
    for files in stems.values():
        if len(files) > 1 and not set(files) <= refused:
            yield Finding("note", "same_stem", "would share one caption file", tuple(files))


def _unused_files(listing: Listing) -> Iterator[Finding]:
    """Files of the folder that nothing uses."""
    if listing.unusable_names:
        message = "names that are not UTF-8, or lead out of the folder on some system; rename them"
        yield Finding("error", "bad_name", message, listing.unusable_names)
    if listing.unreadable_folders:
        message = "folders that cannot be opened; what is in them is not used"
        yield Finding("error", "unreadable_folder", message, listing.unreadable_folders)
    owners = {str(PurePosixPath(file).with_suffix("")) for file in listing.images} | listing.image_set
    owners |= {listing.normalise(owner) for owner in owners}
    orphans = [name for name in sorted(listing.sidecars) if not _has_image(name, owners, listing)]
    if orphans:
        yield Finding("warning", "orphan_caption", "a caption file without an image", tuple(orphans))
    if listing.hidden_images:
        yield Finding("note", "hidden", "hidden images are not used", listing.hidden_images)
    if listing.linked_folders:
        message = "linked folders are not followed; copy them in if they belong here"
        yield Finding("warning", "linked_folder", message, listing.linked_folders)
    if listing.others:
        yield Finding("note", "other_files", "not images, not used", listing.others)


def _has_image(name: str, owners: set[str], listing: Listing) -> bool:
    stem = str(PurePosixPath(name).with_suffix(""))
    return stem in owners or listing.normalise(stem) in owners
