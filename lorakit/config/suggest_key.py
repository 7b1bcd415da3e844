"""The recipe key that an unknown key, option or word was probably meant to be."""

from __future__ import annotations

from typing import NamedTuple

from lorakit.config.other_trainers import EPOCH_NAMES, EXPLANATIONS, OTHER_NAMES, OTHER_SWITCHES
from lorakit.core.nearest import nearest_name

EPOCH_FORMULA = "steps = epochs x images x repeats / (train.batch_size x train.accumulate)"


class Suggestion(NamedTuple):
    """The text to write instead of a word, and a sentence about it; either may be missing."""

    write: str | None
    explanation: str | None = None


def explain_setting(name: str, value: str | None, known: list[str]) -> Suggestion | None:
    """Return what to write for a setting named in the words of lorakit or of another trainer.

    None if the name is not known; see `suggest_key` for names that are only similar.
    """
    known = _concepts_last(known)
    name = name.lower().replace("-", "_").strip("_")
    shown_value = "..." if value is None else value
    if name in EPOCH_NAMES:
        return Suggestion("train.steps=...", EPOCH_FORMULA)
    if name in known:
        return Suggestion(f"{name}={shown_value}")
    if name in OTHER_SWITCHES:
        return Suggestion(OTHER_SWITCHES[name])
    if name in EXPLANATIONS:
        return Suggestion(None, EXPLANATIONS[name])
    key = OTHER_NAMES.get(name) or next((one for one in known if one.rpartition(".")[2] == name), None)
    return Suggestion(f"{key}={shown_value}") if key in known else None


def _concepts_last(known: list[str]) -> list[str]:
    """Return the keys with those of a concept, many of which are the recipe's too, at the end."""
    return sorted(known, key=lambda key: key.startswith("dataset."))


def suggest_key(key: str, known: list[str]) -> str | None:
    """Return the known dotted key that `key` was probably meant to be, or None.

    In this order: the name of another trainer; the same name in another section; similar spelling in the
    same section, then anywhere.
    """
    known = _concepts_last(known)
    section, _, last = key.rpartition(".")
    name = last.lower().replace("-", "_").strip("_")
    others = {other.replace("_", ""): target for other, target in OTHER_NAMES.items()}
    other = OTHER_NAMES.get(name) or others.get(name.replace("_", ""))
    if other in known and other != key:
        return other
    same_name = [one for one in known if one.rpartition(".")[2] == name and one != key]
    if same_name:
        return same_name[0]
    siblings = [one for one in known if one.rpartition(".")[0] == section]
    names = {one.rpartition(".")[2]: one for one in reversed(known)}
    if close := nearest_name(name, [one.rpartition(".")[2] for one in siblings]):
        return f"{section}.{close}" if section else close
    close = nearest_name(name, names)
    if close is None and (similar := nearest_name(name, OTHER_NAMES, cutoff=0.8)):
        return OTHER_NAMES[similar]
    return names[close] if close else None
