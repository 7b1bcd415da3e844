"""The grid of a sweep: recipe keys with several values, and a recipe for each combination. Needs no torch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.config import strict_yaml
from lorakit.config.recipe import Recipe, change_recipe
from lorakit.config.suggest_key import suggest_key
from lorakit.config.validation_errors import known_keys
from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean

MAX_MEMBERS = 64
SWEPT_SECTIONS = ("adapter", "optimizer", "objective", "caption_use")
SWEPT_KEYS = (
    "train.seed",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.ema_decay",
    "init_from",
)
_SHARED = {
    "adapter.text_encoder": "it decides which networks are loaded",
    "adapter.denoiser": "it decides which networks are trained",
    "base": "the members share one base model",
    "dataset": "the members share one dataset",
    "class_images": "the members share one dataset",
    "resolution": "the members share the images in the cache",
    "frames": "the members share the images in the cache",
    "memory": "the members share the weights of the base model",
    "train.precision": "the members share the weights of the base model",
    "validate": "the members are compared on the same held-out images",
    "samples": "the members are compared on the same samples",
    "out": "the members have folders of their own in --out",
}
_OTHER_REASON = "it is not a setting of how one adapter is trained"


@dataclass(frozen=True)
class Axis:
    """A recipe key and its values, as they are written in an override."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """One combination of a grid: its name, its overrides `key=value` and its recipe."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe


def parse_axes(words: Sequence[str]) -> list[Axis]:
    """Read words such as `adapter.rank=4,16`; raises ConfigError for one that is not of this form."""
    axes: list[Axis] = []
    for word in words:
        key, equals, text = word.partition("=")
        values = tuple(_split_values(text))
        if not equals or not key or not all(values):
            raise ConfigError(
                f"{word!r} is not of the form key=value,value",
                where="--grid",
                remedy="for instance --grid adapter.rank=4,16 optimizer.lr=1e-4,3e-4",
            )
        axes.append(Axis(key, values))
    return axes


def axes_of(grid: Mapping[str, Sequence[Any]]) -> list[Axis]:
    """Return the axes of a mapping of recipe keys to lists of values."""
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ConfigError(f"the values of {key} must be a list", where="grid", remedy=f"{key}: [4, 16]")
    return [Axis(key, tuple(json.dumps(value) for value in values)) for key, values in grid.items()]


def is_axis(word: str) -> bool:
    """Return True for a word with several values, such as `optimizer.lr=1e-4,3e-4`."""
    return "=" in word and len(_split_values(word.partition("=")[2])) > 1


def build_members(recipe: Recipe, axes: Sequence[Axis], out: Path) -> list[Member]:
    """Return a member for each combination of values, in the folder `out`/NAME.

    Raises ConfigError for a key that the members must share, for a value twice, for more than `MAX_MEMBERS`
    combinations, and for a combination that is not a valid recipe.
    """
    _check_recipe(recipe)
    _check_axes(axes)
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_MEMBERS:
        raise ConfigError(
            f"{count} combinations are more than a sweep trains ({MAX_MEMBERS})",
            where="--grid",
            remedy="leave out values, or run a second sweep with another --out",
        )
    short = _short_names([axis.key for axis in axes])
    members = []
    for values in itertools.product(*(axis.values for axis in axes)):
        pairs = list(zip(axes, values, strict=True))
        labels = [(short[axis.key], value_label(value)) for axis, value in pairs]
        name = "-".join(label if label[:1].isalpha() else key + label for key, label in labels)
        overrides = tuple(f"{axis.key}={value}" for axis, value in pairs)
        folder = f"out={json.dumps(str(out / name))}"
        members.append(Member(name, overrides, change_recipe(recipe, [*overrides, folder])))
    names = [member.name for member in members]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"two members have the name {repeated}", where="--grid", remedy="leave one of the values out"
        )
    return members


def _check_recipe(recipe: Recipe) -> None:
    if recipe.slider:
        raise ConfigError(
            "a slider generates images of its own, which the members of a sweep would not share",
            where="slider",
            remedy="train sliders one by one with lorakit train",
        )
    for key in ("compile", "cuda_graph"):
        if getattr(recipe.train, key) is True:
            raise ConfigError(
                "the joined passes of a sweep are not compiled",
                where=f"train.{key}",
                remedy=f"set train.{key}=false; or train the adapters one by one",
            )
    if recipe.train.kernels == "measure":
        raise ConfigError(
            "a sweep measures no kernels", where="train.kernels", remedy="leave it out, or train one by one"
        )
    if recipe.tracker_config.run_name:
        raise ConfigError(
            "all members of a sweep would have the same name in the tracker",
            where="tracker.run_name",
            remedy="leave it out: each run then has the name of its folder",
        )


def _check_axes(axes: Sequence[Axis]) -> None:
    if not axes:
        raise ConfigError("a sweep needs values", where="--grid", remedy="--grid adapter.rank=4,16")
    keys = [axis.key for axis in axes]
    known = known_keys(Recipe)
    for axis in axes:
        if keys.count(axis.key) > 1:
            raise ConfigError(
                f"{axis.key} is named twice", where="--grid", remedy="write its values together"
            )
        reason = _refusal(axis.key)
        if axis.key not in known:
            meant = suggest_key(axis.key, known)
            raise ConfigError(
                f"unknown recipe key {axis.key!r}{did_you_mean(axis.key, known)}",
                where="--grid",
                remedy=f"use {meant or 'a key'} of `lorakit recipe reference`",
            )
        if reason:
            raise ConfigError(
                f"a sweep cannot vary {axis.key}: {reason}",
                where="--grid",
                remedy=f"run a sweep for each value, with {axis.key}=VALUE and another --out",
            )


def _refusal(key: str) -> str | None:
    """Return why the members must share a key, or None."""
    for shared, reason in _SHARED.items():
        if key == shared or key.startswith(f"{shared}."):
            return reason
    section = key.partition(".")[0]
    return None if key in SWEPT_KEYS or section in SWEPT_SECTIONS else _OTHER_REASON


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, or the whole key where two have the same last part."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: own if last.count(own) == 1 else key for key, own in zip(keys, last, strict=True)}


def value_label(value: str) -> str:
    """Return a value as part of a folder's name: `1e-4` for 0.0001, only with signs for any file system."""
    parsed = strict_yaml.parse_yaml(value, "grid")
    if isinstance(parsed, float):
        mantissa, _, exponent = f"{parsed:.5e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{parsed:g}" if 1e-2 <= abs(parsed) < 1e6 or not parsed else f"{mantissa}e{int(exponent)}"
    else:
        text = str(parsed) if parsed is not None else "none"
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60]


def _split_values(text: str) -> list[str]:
    """Split at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == "," and not depth:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]
