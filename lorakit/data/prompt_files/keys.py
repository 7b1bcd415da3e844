"""Keys of prompts: those of lorakit, their names in other tools, and those that have no equal.

Upper case, spaces and dashes do not count: `Negative Prompt` is `negative_prompt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorakit.core.errors import DataError
from lorakit.data.prompt_files.row import Values

PROMPT_KEYS = (
    "id",
    "prompt",
    "score_text",
    "negative",
    "seeds",
    "width",
    "height",
    "aspect_ratio",
    "num_inference_steps",
    "guidance_scale",
    "kind",
    "image",
    "mask",
    "questions",
)
# The first of these that a row has is its prompt; the others are not read.
PROMPT_NAMES = [
    "prompt",
    "prompts",
    "positive_prompt",
    "positive",
    "text_prompt",
    "prompt_text",
    "prompt_en",
    "text",
    "caption",
    "description",
]
_NAMES = {
    "id": "prompt_id item_id uid idx",
    "negative": "negative_prompt negativeprompt neg neg_prompt negative_text uc",
    "seeds": "seed noise_seed",
    "num_inference_steps": "steps sample_steps num_steps inference_steps sampling_steps",
    "guidance_scale": "cfg_scale cfgscale cfg scale guidance",
    "size": "resolution image_size",
    "aspect_ratio": "aspect ar",
    "kind": "category tag",
    "width": "w",
    "height": "h",
}
_SAME = {name: name for name in (*PROMPT_KEYS, "size")}
OWN_NAME = _SAME | {name: own for own, names in _NAMES.items() for name in names.split()}
OPTION_NAME = OWN_NAME | {
    "prompt": "prompt",
    "n": "negative",
    "nl": "negative",
    "no": "negative",
    "d": "seeds",
    "s": "num_inference_steps",
    "l": "guidance_scale",
    "g": "guidance_scale",
}
_SETTINGS_ELSEWHERE = (
    "ss fs f b bs ow oh nw nh sampler sampler_name sampler_index sample_sampler scheduler schedule"
    " frame_count batch_size n_iter discrete_flow_shift flow_shift shift ctr rcfg cfg_trunc_ratio renorm_cfg"
    " gr clip_skip guidance_rescale model sd_model model_hash vae styles style subseed subseed_strength"
    " restore_faces seed_resize_from_h seed_resize_from_w tiling do_not_save_samples do_not_save_grid"
    " outpath_samples outpath_grids prompt_for_display enum sample_every ext format"
)
_SETTINGS_OF_MIDJOURNEY = (
    "v version niji stylize chaos q quality iw sref cref sw cw tile weird raw uplight stop repeat fast relax"
    " turbo video p personalize profile exp draft"
)
_NOTES_OF_PROMPT_SETS = (
    "challenge note notes include exclude source subcategory type difficulty skills atom_count vqa_list"
    " generations ranking comment comments reference url index number"
)
UNUSED_NAMES = frozenset(f"{_SETTINGS_ELSEWHERE} {_SETTINGS_OF_MIDJOURNEY} {_NOTES_OF_PROMPT_SETS}".split())
_ADAPTER = ("it is the strength of an adapter", "remove it, and give the strength as --adapter FILE:STRENGTH")
_IMAGE = ("it is an image", "write the prompts as JSONL, with the image's path in the key `image`")
_SECOND_TEXT = ("it is a text for the second text encoder only", "write one prompt for all text encoders")
REFUSED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ["i", "ei", "ci", "cn", "controlnet_image", "image_path", "ctrl_img", "init_image"], _IMAGE
    ),
    **dict.fromkeys(["am", "m", "network_multiplier", "lora_scale"], _ADAPTER),
    **dict.fromkeys(["p2", "n2", "prompt_2", "negative_prompt_2"], _SECOND_TEXT),
}
_NO_EQUAL = ("it has no equal in lorakit", "remove it")


def plain_name(name: str) -> str:
    """Return a key or column name without upper case, spaces and dashes."""
    return re.sub(r"[\s\-]+", "_", name.strip().lower())


def no_place(text: str, name: str, where: str) -> DataError:
    """Return the error for a setting that a prompt cannot have; `text` is the setting as it is written."""
    reason, remedy = REFUSED.get(name, _NO_EQUAL)
    return DataError(f"{text} cannot be set in a prompt: {reason}", where=where, remedy=remedy)


def prompt_name(names: Mapping[str, Any]) -> str | None:
    """Return the name of the prompt among the names of a row or table, as it is written there."""
    by_plain = {plain_name(name): name for name in names}
    return next((by_plain[name] for name in PROMPT_NAMES if name in by_plain), None)


def own_values(row: Mapping[str, Any], where: str, *, table: bool = False) -> tuple[Values, tuple[str, ...]]:
    """Return a row with the keys of lorakit, and the names that are not used.

    In a table, unknown columns are unused; other unknown keys stay, and are refused when the values are
    checked. Raises DataError for a setting with no place in a prompt, and for two values of one key.
    """
    collected: dict[str, list[Any]] = {}
    unused = []
    prompt = prompt_name(row)
    for name, value in row.items():
        plain = plain_name(name)
        if value is None or (table and not str(value).strip()):
            continue
        if name == prompt:
            collected.setdefault("prompt", []).append(value)
        elif plain in PROMPT_NAMES or plain in UNUSED_NAMES:
            unused.append(name)
        elif plain in REFUSED:
            raise no_place(f"{name} = {str(value)[:40]}", plain, where)
        elif plain in OWN_NAME:
            collected.setdefault(OWN_NAME[plain], []).append(value)
        elif table:
            unused.append(name)
        else:
            collected.setdefault(name, []).append(value)
    return {key: one_value(key, values, where) for key, values in collected.items()}, tuple(
        name for name in unused if name != "enum"
    )


def one_value(key: str, values: list[Any], where: str) -> Any:
    """Return the only value of a key; of two guidance scales the one that is not 1, which means none."""
    different = list(dict.fromkeys(map(str, values)))
    if len(different) > 1 and key == "guidance_scale":
        values = [value for value in values if str(value) not in ("1", "1.0")] or values
        different = list(dict.fromkeys(map(str, values)))
    if len(different) > 1:
        raise DataError(f"{key} is given twice", where=where, remedy="remove one of the two")
    return values[0]
