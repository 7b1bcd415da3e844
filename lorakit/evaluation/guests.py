"""Guests of an evaluation: adapters of another origin, with the same prompts and noise, never selected.

A guest has a trigger word of its own, which replaces that of the run in its prompts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit import adapters
from lorakit.adapters.files import parse_adapter_metadata
from lorakit.adapters.sources import AdapterSource, parse_adapter_source
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt

TRIGGER_KEYS = ("modelspec.trigger_phrase",)  # of the metadata that other programs write
_UNSAFE = re.compile(r"[^\w.-]+")
_MAX_NAME = 60


@dataclass(frozen=True)
class GuestRequest:
    """FILE, RUN or RUN@STEP with an optional :STRENGTH, and WORD or OLD=WORD as its trigger word."""

    adapter: str
    trigger: str | None = None


@dataclass(frozen=True)
class Guest:
    """An adapter of another origin, its name in the report, and the trigger word that it replaces."""

    name: str
    source: AdapterSource
    trigger: str | None = None
    replaces: str | None = None
    """The run's trigger word that `trigger` takes the place of."""

    @property
    def folder(self) -> str:
        """The name of the folder of its images."""
        file = str(self.source.weights_file.resolve())
        return f"guest-{_UNSAFE.sub('-', self.name)}-{checksums.sha256_bytes(file.encode())[:8]}"

    def own_prompt(self, prompt: Prompt) -> Prompt:
        """Return a prompt of the run with the guest's trigger word; id, seeds and noise are the same."""
        if not (self.trigger and self.replaces):
            return prompt
        pattern = rf"(?<!\w){re.escape(self.replaces)}(?!\w)"
        return replace(prompt, prompt=re.sub(pattern, lambda _: str(self.trigger), prompt.prompt, flags=re.I))


def find_guests(
    requests: Sequence[GuestRequest], run_triggers: Sequence[str], used_names: Collection[str] = ()
) -> tuple[list[Guest], list[str]]:
    """Find the adapters of guests, and return notes about trigger words that are not known.

    Raises ConfigError for a missing adapter, and for a trigger word that cannot replace one of the run's.
    """
    guests: list[Guest] = []
    notes = []
    for request in requests:
        source = parse_adapter_source(request.adapter).print_line()
        name = _unique_name(_name(source), [*used_names, *(guest.name for guest in guests)])
        word, replaces = _trigger(request, source, run_triggers)
        guests.append(Guest(name, source, word, replaces))
        if run_triggers and word is None:
            words = ", ".join(run_triggers)
            notes.append(
                f"{name} was sampled with the trigger word of the run ({words}): its file does not say which "
                "one it was trained with. --with-trigger WORD names it."
            )
    return guests, notes


def _trigger(
    request: GuestRequest, source: AdapterSource, run_triggers: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return the guest's trigger word and the run's that it replaces; None if it is not known."""
    if request.trigger is None:
        word = _recorded_trigger(source)
        return (word, run_triggers[0]) if word and len(run_triggers) == 1 else (None, None)
    old, equals, word = request.trigger.rpartition("=")
    where = f"--with-trigger {request.trigger}"
    if not word.strip():
        raise ConfigError("the trigger word is empty", where=where, remedy="write --with-trigger WORD")
    if not run_triggers:
        remedy = "leave --with-trigger out, and use prompts that suit both adapters"
        raise ConfigError("the run has no trigger word to replace", where=where, remedy=remedy)
    if not equals:
        if len(run_triggers) > 1:
            remedy = f"write --with-trigger {run_triggers[0]}={word}"
            message = f"the run has several trigger words: {', '.join(run_triggers)}"
            raise ConfigError(message, where=where, remedy=remedy)
        return word.strip(), run_triggers[0]
    matches = [trigger for trigger in run_triggers if trigger.casefold() == old.strip().casefold()]
    if not matches:
        remedy = f"one of {', '.join(run_triggers)}"
        raise ConfigError(f"the run has no trigger word {old!r}", where=where, remedy=remedy)
    return word.strip(), matches[0]


def _recorded_trigger(source: AdapterSource) -> str | None:
    """Return the trigger word in the metadata of an adapter file, if there is one."""
    metadata = storage.read_safetensors_metadata(source.weights_file)
    if text := metadata.get(adapters.METADATA_KEY):
        word = parse_adapter_metadata(text, str(source.path)).get("trigger")
        if isinstance(word, str) and word.strip():
            return word.strip()
    words = [metadata[key].strip() for key in TRIGGER_KEYS if key in metadata]
    return next((word for word in words if word), None)


def _name(source: AdapterSource) -> str:
    if source.run is not None:
        name = f"{source.run.resolve().name}-step-{source.step}"
    else:
        path = Path(source.path)
        name = path.resolve().name if path.is_dir() else path.stem
    suffix = "" if source.strength == 1 else f"@{source.strength:g}"
    return name[:_MAX_NAME] + suffix


def _unique_name(name: str, used_names: Collection[str]) -> str:
    used = {other.casefold() for other in used_names}
    number = 2
    unique = name
    while unique.casefold() in used:
        unique, number = f"{name}-{number}", number + 1
    return unique
