"""The prompt in the texts of an image file, as each generator writes them: one list of readers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json
from lorakit.data.prompt_files.infotext import parse_infotext
from lorakit.data.prompt_files.options import with_options
from lorakit.evaluation.image_prompts.comfyui import read_graph

Texts = Mapping[str, str]
_PARAMETERS = ("parameters", "usercomment", "comment")
_DREAM = re.compile(r'"(?P<prompt>(?:[^"\\]|\\.)*)".*?(?:-S\s*(?P<seed>\d+))?', re.DOTALL)
_JOB = re.compile(r"\s*Job ID: [0-9a-f-]{36}", re.IGNORECASE)


@dataclass(frozen=True)
class ImageText:
    """The prompt that an image was generated from, its seed, and the program or file that says so."""

    prompt: str
    source: str
    negative: str = ""
    seed: int | None = None


def read_prompt(texts: Texts) -> ImageText | None:
    """Return the prompt in the texts of an image; None if no generator wrote one."""
    return next(
        (image_text for reader in READERS if (image_text := reader(texts)) and image_text.prompt), None
    )


def parse_sidecar(text: str, source: str) -> ImageText | None:
    """Return the prompt in the text of a file beside an image: infotext, or a prompt with options."""
    infotext = _infotext(text, source)
    if infotext:
        return infotext
    values, _ = with_options({"prompt": " ".join(text.split())}, source)
    prompt = str(values["prompt"])
    return (
        ImageText(prompt, source, str(values.get("negative", "")), _number(values.get("seeds")))
        if prompt
        else None
    )


def _a1111(texts: Texts) -> ImageText | None:
    for name in _PARAMETERS:
        if image_text := _infotext(texts.get(name, ""), "the metadata of A1111"):
            return image_text
    text = texts.get("parameters", "").strip()
    return (
        ImageText(" ".join(text.split()), "the metadata of A1111") if text and text[0] not in "{[" else None
    )


def _infotext(text: str, source: str) -> ImageText | None:
    infotext = parse_infotext(text) if text.strip() and text.lstrip()[0] not in "{[" else None
    if infotext is None:
        return None
    prompt = infotext.settings.get("raw prompt") or infotext.prompt  # of Fooocus, before its styles
    return ImageText(prompt, source, infotext.negative, _number(infotext.settings.get("seed")))


def _comfyui(texts: Texts) -> ImageText | None:
    for name in ("prompt", "workflow"):
        graph = _tree(texts.get(name, ""), allow_infinity=True)
        if graph is not None and (image_text := read_graph(graph)):
            return ImageText(
                image_text.prompt, "the metadata of ComfyUI", image_text.negative, image_text.seed
            )
    return None


def _invokeai(texts: Texts) -> ImageText | None:
    tree = _tree(texts.get("invokeai_metadata", "")) or {}
    if isinstance(tree, dict) and isinstance(tree.get("positive_prompt"), str):
        return _of_tree(tree, "InvokeAI", "positive_prompt", "negative_prompt")
    image = (_tree(texts.get("sd-metadata", "")) or {}).get("image", {})
    prompt = image.get("prompt") if isinstance(image, dict) else None
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = ", ".join(str(part.get("prompt", "")) for part in prompt)
    if isinstance(prompt, str) and prompt:
        return ImageText(prompt, "the metadata of InvokeAI", "", _number(image.get("seed")))
    if dream := _DREAM.match(texts.get("dream", "").strip()):
        seed = re.search(r"-S\s*(\d+)", texts["dream"])
        return ImageText(dream["prompt"], "the metadata of InvokeAI", "", _number(seed[1]) if seed else None)
    return None


_JSON_KEYS = (
    ("Fooocus", "prompt", "negative_prompt"),
    ("Fooocus", "Prompt", "Negative Prompt"),
    ("NovelAI", "prompt", "uc"),
    ("Draw Things", "c", "uc"),
)


def _json_parameters(texts: Texts) -> ImageText | None:
    """Read JSON in the place of infotext: SwarmUI, Fooocus, NovelAI, Draw Things."""
    for name in _PARAMETERS:
        tree = _tree(texts.get(name, ""))
        if not isinstance(tree, dict):
            continue
        swarm = tree.get("sui_image_params")
        if isinstance(swarm, dict) and isinstance(swarm.get("prompt"), str):
            return _of_tree(swarm, "SwarmUI", "prompt", "negativeprompt")
        for tool, positive, negative in _JSON_KEYS:
            if isinstance(tree.get(positive), str) and tree[positive].strip():
                return _of_tree(tree, tool, positive, negative)
    return None


def _midjourney(texts: Texts) -> ImageText | None:
    text = texts.get("description", "")
    if not _JOB.search(text):
        return None
    try:
        values, _ = with_options({"prompt": _JOB.sub("", text)}, "metadata")
    except DataError:
        values = {"prompt": text.split(" --")[0]}
    return ImageText(str(values["prompt"]), "the metadata of Midjourney", "", _number(values.get("seeds")))


def _plain(texts: Texts) -> ImageText | None:
    """Read a text named prompt, as kohya's gen_img.py, Easy Diffusion and own scripts write it."""
    text = texts.get("prompt", "").strip()
    if not text or text[0] in "{[":
        return None
    negative = next((texts[name] for name in ("negative_prompt", "negative-prompt") if name in texts), "")
    return ImageText(" ".join(text.split()), "the metadata", negative, _number(texts.get("seed")))


READERS: tuple[Callable[[Texts], ImageText | None], ...] = (
    _a1111,  # programs that are not A1111 write its infotext beside their own metadata
    _json_parameters,
    _invokeai,
    _comfyui,
    _midjourney,
    _plain,
)


def _of_tree(tree: Mapping[str, Any], tool: str, positive: str, negative: str) -> ImageText:
    text, other = str(tree[positive]), tree.get(negative)
    seed = next((tree[name] for name in ("seed", "Seed") if name in tree), None)
    return ImageText(text, f"the metadata of {tool}", other if isinstance(other, str) else "", _number(seed))


def _tree(text: str, *, allow_infinity: bool = False) -> Any:
    if not text.lstrip().startswith("{"):
        return None
    try:
        return parse_json(text.strip("\0 \n"), "metadata", allow_infinity=allow_infinity)
    except DataError:
        return None


def _number(value: Any) -> int | None:
    """Return a seed; None for anything but a whole number from 0."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,19}", value.strip(), re.ASCII):
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
