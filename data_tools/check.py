"""Checks before training, worst findings first: defects, duplicates, sizes, names and captions."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from data_tools import duplicates
from data_tools.captions import collect, lint
from data_tools.captions.columns import CAPTION_COLUMNS, COLUMNS_UNREAD
from data_tools.captions.embedded_text import EMBEDDED_TEXT
from data_tools.captions.generate import CAPTION_FAILED
from data_tools.captions.sidecars import UNREADABLE
from data_tools.captions.unread_text import find_unread_text
from data_tools.color_comparison import ColorComparison
from data_tools.duplicates import Cluster
from data_tools.findings import Finding, Level, pluralize, sort_findings
from data_tools.listing import Listing, file_stem
from data_tools.scan import SCAN_REASONS, note_code
from lorakit.core.words import has_word
from lorakit.imaging import video
from lorakit.imaging.buckets import MAX_UNNOTICED_UPSCALE
from lorakit.imaging.crops import upscale_factor
from lorakit.manifest import Record

MIN_DIFFERENT_IMAGES = 5
MAX_REASONS = 20  # of one code that are findings of their own
MAX_TEMPLATE_IMAGES = 50  # of one subject with one caption
# Level and message of the finding for all images that carry a note.
_NOTE_MESSAGES: dict[str, tuple[Level, str]] = {
    "transparency": ("note", "transparent parts show the background color"),
    "blurry": ("warning", "probably out of focus or enlarged"),
    "letterbox": ("warning", "uniform bars at two sides; the model would learn them"),
    "broken_exif": ("note", "damaged EXIF block ignored"),
    "broken_icc": ("warning", "the color profile cannot be used and is ignored; colors may be wrong"),
    "caption_truncated": (
        "warning",
        "no text encoder reads a caption to its end; the notes quote the lost words",
    ),
    "caption_truncated_partly": ("note", "not all text encoders read a caption to its end"),
    "captions_replaced": ("note", "a model's captions are used instead of the caption files"),
    "caption_empty": ("warning", "an empty caption"),
    "answer_cleaned": ("note", "a model's answer held more than a description; the rest is removed"),
    "caption_parentheses_unescaped": (
        "note",
        r"escaped parentheses \( and \) are read as ( and ): the text that the model sees",
    ),
    "caption_trigger_filled": ("note", "the trigger word is in place of [trigger] or {trigger}"),
    "caption_tags_unused": (
        "note",
        "tags beside a caption, or about the file, are not trained",
    ),
    "caption_settings_unused": ("note", "negative prompts and settings of image generators are not trained"),
    "caption_rows_joined": ("note", "several rows of a table are captions of one image"),
    "caption_files_left_out": (
        "note",
        "caption files without the --caption-extension are not read",
    ),
    "caption_lines_joined": ("note", "several caption lines joined into one caption"),
    "caption_lines_are_tags": ("note", "the lines of a caption file are tags, joined by commas"),
    "caption_lines_are_captions": ("note", "each line of a caption file is a caption of its own"),
    "caption_wrong_encoding": (
        "warning",
        "a caption was saved in the wrong encoding; write it again as UTF-8",
    ),
    "caption_control_characters": ("warning", "control characters removed from a caption"),
    "caption_conflict": (
        "warning",
        "two files have different captions; the notes of the image say which is used",
    ),
    "conditioning_image_unreadable": ("error", "a conditioning image that cannot be read; it is not used"),
    "conditioning_image_aspect_mismatch": (
        "note",
        "a conditioning image with another aspect ratio than its image; its middle is used",
    ),
    "clipped_tones": ("note", "mostly pure black or white"),
    "cmyk": ("note", "CMYK without a usable profile; colors are approximate"),
    "cropped": ("warning", "more than a tenth of the image is cropped off"),
    "bit_depth": ("note", "16 bits a channel scaled to 8"),
    "single_color": ("warning", "one color all over; is this an image?"),
    "first_frame": ("note", "only the first frame is used"),
    "primary_image": ("note", "of several images in a file, the primary one is used"),
    "xmp_orientation": ("note", "a rotation that only XMP states is not applied, as in browsers"),
    "icc_converted": ("note", "converted from its color profile to sRGB"),
    "color_encoding_converted": ("note", "converted from its color encoding (cICP, nclx or gAMA) to sRGB"),
    "hdr_tone_mapped": ("warning", "HDR mapped to the range of sRGB; check its brightness"),
    "mask_orientation_ambiguous": ("warning", "the mask of a rotated image; check that it fits"),
    "mask_empty": ("warning", "a mask that is black all over; it is not used"),
    "mask_prompt_not_found": ("warning", "the word to mask was not found in the image"),
    "mask_covers_all": ("warning", "a mask of the whole image selects nothing; raise --threshold"),
    "pose_not_found": ("warning", "no person was detected, so the image has no pose to control it"),
    "conditioning_not_generated": ("error", "a mask or control was not generated: the image cannot be read"),
    "mask_size_mismatch": ("warning", "a mask that does not fit its image; it is not used"),
    "user_metadata": ("note", "captioned in your own metadata file, which is not changed"),
    "exif_rotated": ("note", "rotated by its EXIF orientation"),
    "wrong_extension": ("note", "the file extension does not match the content; used anyway"),
}
# Notes that name what is not used: the finding quotes them.
_QUOTED_NOTES = (
    "caption_conflict",
    "caption_files_left_out",
    "caption_rows_joined",
    "caption_settings_unused",
    "caption_tags_unused",
)


def check_dataset(
    listing: Listing,
    records: Sequence[Record],
    *,
    trigger: str | None = None,
    tokens_counted: bool = False,
    held_out: Sequence[Record] = (),
) -> list[Finding]:
    """Return all findings, worst first; `tokens_counted` as in `lint.lint_captions`.

    `held_out` are images of another folder that must not be trained on; their names start with that folder.
    """
    every = [*records, *held_out]
    exact = duplicates.find_exact_duplicates(every)
    near = duplicates.find_near_duplicates(every, ColorComparison(listing.folder))
    findings = [
        *_rejected_images(records),
        *_missing_captions(records),
        *_manifest_notes(records),
        *_unread_columns(records),
        *find_unread_text(listing, records),
        *_upscaled(records),
        *_failed_captions(records),
        *_duplicates(records, exact, near),
        *_too_little_to_learn_from(records, [*exact, *near], trigger),
        *_name_collisions(listing, records),
        *_unused_files(listing),
        *lint.lint_captions(records, trigger, tokens_counted=tokens_counted),
    ]
    return sort_findings(findings)


def _rejected_images(records: Sequence[Record]) -> Iterator[Finding]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if not record.keep:
            groups[record.reason or ""].append(record)
    for reason, group in _few_reasons(groups).items():
        by_user = note_code(reason) not in SCAN_REASONS
        level: Level = "note" if by_user else "error"
        code = "excluded_by_user" if by_user else note_code(reason)
        text = reason if by_user else reason.partition(":")[2].strip()
        yield Finding(level, code, text, tuple(record.file for record in group))


def _few_reasons(groups: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the images by reason; of a code with many different reasons, such as sizes, as one group."""
    by_code: dict[str, list[str]] = defaultdict(list)
    for reason in groups:
        by_code[note_code(reason)].append(reason)
    joined: dict[str, list[Record]] = {}
    for code, reasons in by_code.items():
        if len(reasons) <= MAX_REASONS or code not in SCAN_REASONS:
            joined |= {reason: groups[reason] for reason in reasons}
            continue
        images = [record for reason in reasons for record in groups[reason]]
        first = reasons[0].partition(":")[2].strip()
        joined[f"{code}: {len(images)} images, for example {first}"] = images
    return joined


def _missing_captions(records: Sequence[Record]) -> Iterator[Finding]:
    files = tuple(collect.files_without_caption(records))
    if files:
        yield Finding("error", "no_caption", f"{len(files)} images have no caption", files)


def _unread_columns(records: Sequence[Record]) -> Iterator[Finding]:
    """Find columns and keys that look like captions and are not read, by their names."""
    names = " or ".join(CAPTION_COLUMNS)
    for columns, files in _files_by_note(records, COLUMNS_UNREAD).items():
        message = f"looks like captions and is not read: {columns}; choose what should be trained with"
        message += f" --caption-column, or rename it to {names}"
        yield Finding("warning", COLUMNS_UNREAD, message, tuple(files))


def _failed_captions(records: Sequence[Record]) -> Iterator[Finding]:
    """Find images without an answer of the captioner, by the reason."""
    for reason, files in _files_by_note(records, CAPTION_FAILED).items():
        message = f"no caption from {reason}; run the command again to request only these"
        yield Finding("warning", CAPTION_FAILED, message, tuple(files))


def _files_by_note(records: Sequence[Record], code: str) -> dict[str, list[str]]:
    """Return the kept images with notes of a code, by the text of the note."""
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        for note in record.notes if record.keep else ():
            if note_code(note) == code:
                groups[note.partition(": ")[2]].append(record.file)
    return groups


def _manifest_notes(records: Sequence[Record]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.keep:
            for code in dict.fromkeys(map(note_code, record.notes)):
                groups[code].append(record.file)
    for code in (COLUMNS_UNREAD, UNREADABLE, EMBEDDED_TEXT):
        groups.pop(code, None)
    groups.pop(CAPTION_FAILED, None)
    groups.pop("upscaled", None)
    for code, files in groups.items():
        level, message = _NOTE_MESSAGES.get(code, ("note", "noted in the manifest"))
        if code in _QUOTED_NOTES:
            texts = list(_files_by_note(records, code))
            message += f": {'; '.join(texts[:3])}{f'; and {len(texts) - 3} more' if texts[3:] else ''}"
        yield Finding(level, code, message, tuple(files))


def _too_little_to_learn_from(
    records: Sequence[Record], clusters: Sequence[Cluster], trigger: str | None
) -> Iterator[Finding]:
    """Find sets of a few different images, far too small images, and captions that are all the same."""
    kept = [record for record in records if record.keep]
    own = {record.file for record in kept}
    number = len(kept) - sum(max(0, len(own & set(cluster.files)) - 1) for cluster in clusters)
    if kept and number < MIN_DIFFERENT_IMAGES:
        message = f"{pluralize(number, 'different image')} would be memorized; 10 to 30 are usual"
        yield Finding("warning", "few_images", message, tuple(record.file for record in kept))
    yield from _template_captions(kept, trigger)


def _template_captions(kept: Sequence[Record], trigger: str | None) -> Iterator[Finding]:
    """Find sets whose captions are all the template.

    For a few images of one subject that is the method of DreamBooth. Without a trigger word the subject has
    no name that it could be learned by, and many images differ in more than their subject.
    """
    if len(kept) < 2 or any(not r.captions or r.captions[0].source != "template" for r in kept):
        return
    text, template = kept[0].caption, kept[0].captions[0].prompt or ""
    if not (has_word(text, trigger) if trigger else "{trigger}" in template):
        message = f"all captions are {text!r}, without a word that stands for the subject; give --trigger"
        yield Finding("warning", "template_captions", message)
    elif len(kept) > MAX_TEMPLATE_IMAGES:
        message = f"{len(kept)} images share the caption {text!r}, so nothing that differs between them"
        message += " is learned; describe each image"
        yield Finding("warning", "template_captions", message)
    else:
        message = "all captions are one template; describe each image, so that only the subject is learned"
        yield Finding("note", "template_captions", message)


def _upscaled(records: Sequence[Record]) -> Iterator[Finding]:
    """Find images that are smaller than their bucket, by how much they are enlarged."""
    by_level: dict[Level, dict[str, float]] = defaultdict(dict)
    for record in records:
        factor = upscale_factor(record) if record.keep else 1.0
        if factor > MAX_UNNOTICED_UPSCALE:
            level: Level = "error" if factor > 3 else "warning" if factor > 1.5 else "note"
            by_level[level][record.file] = factor
    for level, factors in by_level.items():
        largest = max(factors.values())
        message = f"smaller than the bucket and enlarged up to {largest:.1f} times; use larger images"
        message += " or a smaller --resolution"
        yield Finding(level, "upscaled", message, tuple(factors))


def _duplicates(
    records: Sequence[Record], exact: Sequence[Cluster], near: Sequence[Cluster]
) -> Iterator[Finding]:
    own = {record.file for record in records}
    for cluster in exact:
        if own & set(cluster.files):
            yield Finding("warning", "duplicate", "the same image, pixel for pixel", cluster.files)
    for cluster in near:
        if own & set(cluster.files):
            message = "nearly the same image" + (", partly mirrored" if cluster.mirrored else "")
            yield Finding("warning", "near_duplicate", message, cluster.files)
    for cluster, splits in duplicates.find_split_leaks([*exact, *near]):
        message = f"in {' and '.join(splits)}: a measurement on one would test images that were trained on"
        yield Finding("warning", "split_leak", message, cluster.files)
    for cluster in (*exact, *near):
        if own & set(cluster.files) and not set(cluster.files) <= own:
            message = (
                "also among the held-out images: a measurement on them would test images that were trained on"
            )
            yield Finding("warning", "split_leak", message, cluster.files)


def _name_collisions(listing: Listing, records: Sequence[Record]) -> Iterator[Finding]:
    """Find names that are different here but equal on another file system."""
    folded: dict[str, list[str]] = defaultdict(list)
    stems: dict[str, list[str]] = defaultdict(list)
    for file in listing.images:
        folded[unicodedata.normalize("NFC", file).casefold()].append(file)
        stems[file_stem(file)].append(file)
    excluded = {record.file for record in records if note_code(record.reason) == "shared_caption_file"}
    for files in folded.values():
        if len(files) > 1:
            message = "names that differ only in case or accents; some file systems cannot hold both"
            yield Finding("warning", "name_differs_by_case", message, tuple(files))
    for files in stems.values():
        if len(files) > 1 and not set(files) <= excluded:
            yield Finding("note", "same_stem", "would share one caption file", tuple(files))


def _unused_files(listing: Listing) -> Iterator[Finding]:
    """Find files of the folder that are not used."""
    if listing.unusable_names:
        message = "names that are not UTF-8, or lead out of the folder on some system; rename them"
        yield Finding("error", "unusable_name", message, listing.unusable_names)
    if listing.unreadable_folders:
        message = "folders that cannot be opened; their files are not used"
        yield Finding("error", "unreadable_folder", message, listing.unreadable_folders)
    owners = set(map(file_stem, listing.images)) | listing.image_set
    owners |= {listing.normalize_name(owner) for owner in owners}
    orphans = [name for name in sorted(listing.sidecars) if not _has_image(name, owners, listing)]
    if orphans:
        yield Finding("warning", "orphan_caption", "a caption file without an image", tuple(orphans))
    if listing.cloud_placeholders:
        message = "placeholders of files that are in the cloud only; download them to use them"
        yield Finding("warning", "cloud_placeholder", message, listing.cloud_placeholders)
    if listing.system_folders:
        message = "folders of the system or of another program; their files are not used"
        yield Finding("note", "system_folder", message, listing.system_folders)
    if listing.hidden_folders:
        yield Finding("note", "hidden_folder", "hidden folders are not used", listing.hidden_folders)
    if listing.hidden_files:
        yield Finding("note", "hidden_file", "hidden files are not used", listing.hidden_files)
    if listing.linked_folders:
        message = "linked folders are not followed; copy them here if they belong to the dataset"
        yield Finding("warning", "linked_folder", message, listing.linked_folders)
    videos = tuple(name for name in listing.other_files if video.is_video(name))
    if videos:
        # Phones store a short video beside a photo.
        is_live_photo = all(file_stem(name) in owners for name in videos)
        message = "videos are used only with --videos, for a base model that generates videos"
        yield Finding("note" if is_live_photo else "warning", "unused_videos", message, videos)
    if others := tuple(name for name in listing.other_files if name not in set(videos)):
        yield Finding("note", "unused_files", "not images; not used", others)


def _has_image(name: str, owners: set[str], listing: Listing) -> bool:
    stem = file_stem(name)
    return stem in owners or listing.normalize_name(stem) in owners
