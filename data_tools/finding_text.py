"""Findings for people: the part of the dataset that one concerns, a title, what is wrong, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_tools.findings import Finding
from data_tools.scan import SCAN_REASONS
from lorakit.core import platform
from lorakit.core.visible_text import escape_name

EXCLUDED, SET, DUPLICATES = "Images that cannot be used", "The set as a whole", "Duplicates"
CAPTIONS, IMAGES, CONDITIONING = "Captions", "Images", "Masks and controls"
UNUSED = "Files that are not used"
AREAS = (EXCLUDED, SET, CAPTIONS, IMAGES, DUPLICATES, CONDITIONING, UNUSED)
_AREA_OF_CODE = {
    **dict.fromkeys(("few_images", "template_captions", "common_phrase", "no_caption"), SET),
    **dict.fromkeys(
        ("duplicate", "near_duplicate", "split_leak", "name_differs_by_case", "same_stem"), DUPLICATES
    ),
    **dict.fromkeys(
        (
            "cloud_placeholder",
            "hidden_file",
            "hidden_folder",
            "linked_folder",
            "orphan_caption",
            "system_folder",
            "table_rows_unused",
            "text_file_unread",
            "unreadable_folder",
            "unusable_name",
            "unused_files",
            "unused_videos",
        ),
        UNUSED,
    ),
    "excluded_by_user": EXCLUDED,
}
_IS_CAPTION = re.compile(
    r"caption|trigger|prompt|wildcard|placeholder|attention|network_tag|embedding|answer|user_metadata|^text_"
)
_IS_CONDITIONING = re.compile(r"^(?:mask|conditioning|pose|control)_")
_TITLES = {
    "broken_exif": "damaged EXIF",
    "broken_icc": "unusable color profile",
    "cmyk": "CMYK",
    "exif_rotated": "rotated by EXIF",
    "hdr_tone_mapped": "HDR mapped to sRGB",
    "html_or_xml": "web page, not an image",
    "icc_converted": "color profile converted",
    "json_file": "JSON, not an image",
    "letterbox": "bars at two sides",
    "lfs_pointer": "git-lfs pointer",
    "not_a_file": "not a regular file",
    "same_stem": "two images of one name",
    "split_leak": "in train and validation",
    "svg": "SVG drawing",
    "symlink_outside": "link out of the folder",
    "upscaled": "smaller than its bucket",
}
_KEEP_FALSE = 'leave it out with `"keep": false` and a reason in manifest.jsonl'
_ACTIONS = {
    "blurry": f"replace it by a sharp image, or {_KEEP_FALSE}",
    "broken_icc": "open the image and save it as sRGB",
    "caption_conflict": "keep one of the two captions",
    "caption_control_characters": "look at the caption, and save it again as plain text",
    "caption_empty": "write a caption, or delete the empty file",
    "caption_row_missing": "add a row for each image",
    "caption_truncated": "write the important words first, or shorten the caption",
    "caption_without_words": "describe what the image shows",
    "caption_markup": "correct the text, or caption again:"
    " `lorakit data caption {folder} --model MODEL --regenerate`",
    "caption_script": "write these captions in the language of the others",
    "captioner_same_answer": "run `lorakit data caption {folder} --model MODEL --regenerate` with a model"
    " that reads images",
    "captioner_refusal": "write the caption, or run `lorakit data caption {folder} --model MODEL` again",
    "conditioning_image_unreadable": "replace the file by an image",
    "cropped": "look at the crop below; set another one with `lorakit data bucket {folder} --crops FILE`",
    "duplicate": 'keep one of each group: delete the others, or set `"keep": false` in manifest.jsonl',
    "few_images": "add images with other views, backgrounds and light",
    "identical_captions": "describe what differs between the images",
    "letterbox": "cut the bars off, or set a crop with `lorakit data bucket {folder} --crops FILE`",
    "long_caption": "write the important words first, or shorten the caption",
    "mask_empty": "paint the part to train on white, or delete the mask",
    "mask_size_mismatch": "save the mask with the aspect ratio of its image",
    "name_differs_by_case": "rename one of them",
    "near_duplicate": "keep the best of each group, unless they differ in what should be learned",
    "no_caption": "write a .txt file beside each image, or give `--class-noun NOUN --trigger WORD`",
    "orphan_caption": "give it the name of its image, or delete it",
    "single_color": f"replace it by an image, or {_KEEP_FALSE}",
    "split_leak": "move the images of a group to one side",
    "unused_videos": "run `lorakit data prepare {folder} --videos` to use them",
}
_VERBS = (
    "add ask call caption check choose convert copy correct cut delete describe develop download export fetch"
    " give install keep make move open pip put raise remove rename repair replace request restore run save"
    " set use write"
)
_IMPERATIVE = re.compile(rf"(?:{'|'.join(_VERBS.split())})\b")
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+(?: '[^']*'| [a-z]+=[^\s;,]+)?")


@dataclass(frozen=True)
class FindingText:
    """A finding for people; code and commands are between backticks."""

    area: str
    title: str
    problem: str
    action: str


def describe(finding: Finding, folder: str) -> FindingText:
    """Return the text of a finding on the dataset folder that commands name as `folder`."""
    problem, action = _split(finding.message)
    command_folder = platform.quote_argument(escape_name(folder)).replace("`", "'")
    if finding.code in _ACTIONS and finding.level != "note":
        action = _ACTIONS[finding.code].replace("{folder}", command_folder)
    title = _TITLES.get(finding.code, finding.code.replace("_", " "))
    return FindingText(area_of(finding.code), title[:1].upper() + title[1:], _mark(problem), _mark(action))


def area_of(code: str) -> str:
    """Return the part of the dataset that findings of a code concern."""
    if code in SCAN_REASONS:
        return EXCLUDED
    if code in _AREA_OF_CODE:
        return _AREA_OF_CODE[code]
    if _IS_CONDITIONING.match(code):
        return CONDITIONING
    return CAPTIONS if _IS_CAPTION.search(code) else IMAGES


def _split(message: str) -> tuple[str, str]:
    """Split a message into what is wrong and what to do: `wrong (do)` or `wrong; do`."""
    start = _last_parenthesis(message)
    if start > 0:
        inner = message[start + 1 : -1]
        if inner.startswith("--") and " " not in inner:
            return message[: start - 1], f"change {inner} to use it"
        if _IMPERATIVE.match(inner):
            return message[: start - 1], inner
    parts = message.split("; ")
    for number, part in enumerate(parts[1:], 1):
        if _IMPERATIVE.match(part):
            return "; ".join(parts[:number]), "; ".join(parts[number:])
    return message, ""


def _last_parenthesis(message: str) -> int:
    """Return the position of the parenthesis that the end of a message closes, 0 without one."""
    if not message.endswith(")"):
        return 0
    depth = 0
    for position in range(len(message) - 1, 0, -1):
        depth += {")": 1, "(": -1}.get(message[position], 0)
        if depth == 0:
            return position if message[position - 1] == " " else 0
    return 0


def _mark(text: str) -> str:
    """Return the text with options between backticks, as commands are."""
    parts = text.split("`")
    parts[::2] = [_OPTION.sub(lambda option: f"`{option[0]}`", part) for part in parts[::2]]
    return "`".join(parts)
