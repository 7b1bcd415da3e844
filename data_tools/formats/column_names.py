"""Roles of columns by their names, as in public tables of images: image, source and target of an edit, ...

`edited_image`, `TARGET_IMG` and `target.jpg` are targets: a name is split into words, and words such as "img"
say nothing. Names of captions are recognized in the same way.
"""

from __future__ import annotations

import re
from typing import Literal

Role = Literal["image", "source", "target", "control", "mask", "unknown"]
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_NO_MEANING = (
    "image images img imgs picture pictures pic pics photo photos file files path paths bytes data column"
    " jpg jpeg png webp pil"
)
_SOURCE = (
    "source sources src input inputs original orig before reference references ref refs start initial pre"
)
_TARGET = "target targets tgt edited edit output outputs out after result gt truth ground final modified post"
_CONTROL = (
    "conditioning condition cond condlabel control controls controlnet guide guidance hint canny depth pose"
    " openpose hed scribble sketch edge edges lineart normal normals segmentation seg mlsd softedge skeleton"
    " keypoints"
)
_MASK = "mask masks masklabel matte"
_CAPTION = "text texts txt caption captions prompt prompts description descriptions sentence sentences"
_OTHER_TEXT = (
    "negative neg uc system user source target input output original edited inverse id ids file files path"
    " paths url urls uri hash sha md5 len length score scores count num tokens token type language lang model"
    " embedding embeddings ocr title template mask name names class category date status format license"
    " author"
)
_INSTRUCTIONS = (
    {"instruction"}, {"instructions"}, {"editing", "instruction"}, {"edit", "instruction"},
    {"edit", "instructions"}, {"edit", "prompt"}, {"edit", "prompts"}, {"edit", "text"}, {"edit"},
    {"editing", "prompt"}, {"edited", "prompt", "list"}, {"prompt"}, {"text"}, {"txt"}, {"caption"},
    {"captions"},
)  # fmt: skip
"""Names of the instruction of an edit, those that are certain first."""


_EMPTY, _SOURCES, _TARGETS = (frozenset(words.split()) for words in (_NO_MEANING, _SOURCE, _TARGET))
_CONTROLS, _MASKS = (frozenset(words.split()) for words in (_CONTROL, _MASK))
_CAPTIONS, _OTHER_TEXTS = (frozenset(words.split()) for words in (_CAPTION, _OTHER_TEXT))


def words_of(name: str) -> frozenset[str]:
    """Return the words of a column's name, in lower case and without numbers."""
    return frozenset(word.lower() for word in _WORD.findall(name) if not word.isdigit())


def image_role(name: str) -> Role:
    """Return the role of a column of images by its name."""
    words = words_of(name) - _EMPTY
    if not words:
        return "image"
    if words & _MASKS:
        return "mask"
    if words & _CONTROLS:
        return "control"
    if words & {"before", "pre"}:  # before_edit
        return "source"
    if words & {"after", "post"}:
        return "target"
    is_source, is_target = bool(words & _SOURCES), bool(words & _TARGETS)
    if is_source == is_target:
        return "unknown"
    return "source" if is_source else "target"


def is_caption(name: str) -> bool:
    """Return True for the name of a column of captions, such as `text`, `blip_caption` or `caption_0`."""
    words = words_of(name)
    return bool(words & _CAPTIONS) and not words & _OTHER_TEXTS


def instruction_rank(name: str) -> int | None:
    """Return a number, small for a certain one, if the name is that of the instruction of an edit."""
    words = words_of(name)
    return next((rank for rank, known in enumerate(_INSTRUCTIONS) if words == known), None)


def is_tags(name: str) -> bool:
    """Return True for the name of a column of tags."""
    return words_of(name) in ({"tags"}, {"tag"}, {"keywords"})
