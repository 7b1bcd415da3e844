"""The entry `memory` of run.json: the settings that a run has decided, for its next sessions.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.config.recipe import Recipe, change_recipe
from lorakit.core.errors import LorakitError
from lorakit.training.run_folder import RunFolder

if TYPE_CHECKING:
    from lorakit.models.memory import MemorySettings

SETTINGS = ("quantize", "stream", "gradient_checkpointing", "offload_activations", "offload_modulation")


def is_memory_entry(value: Any) -> bool:
    """Return True if a value can be the entry `memory` of run.json."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("device"), str)
        and type(value.get("images_at_once")) is int
        and value["images_at_once"] >= 1
        and isinstance(value.get("settings"), dict)
        and value["settings"].keys() == set(SETTINGS)
        and value["settings"]["quantize"] in (None, "nf4", "int8", "fp8")
    )


def recorded_settings(entry: Mapping[str, Any]) -> MemorySettings:
    """Return the settings of an entry."""
    from lorakit.models.memory import MemorySettings

    return MemorySettings(**entry["settings"])


class MemoryRecord:
    """The entry of one run; without a run's folder it is kept in this process only."""

    def __init__(self, run: RunFolder | None = None) -> None:
        self._run = run
        self._entry: Mapping[str, Any] | None = None

    def read(self) -> Mapping[str, Any] | None:
        """Return the entry, or None if nothing is decided yet."""
        entry = self._entry
        if self._run is not None and self._run.exists:
            entry = self._run.record().get("memory")
        return entry if is_memory_entry(entry) else None

    def write(self, entry: Mapping[str, Any]) -> None:
        """Record what is decided."""
        self._entry = entry
        if self._run is not None and self._run.exists:
            self._run.update_record(memory=entry)


def with_recorded_quantization(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe of a run with what the run has decided about the form and place of the base model's
    weights (`quantize`, `stream`), where the recipe says nothing."""
    try:
        entry = RunFolder(run).record().get("memory")
    except (LorakitError, OSError):  # a run without a readable record is reported where its record is needed
        return recipe
    settings = dict(entry or {})["settings"] if is_memory_entry(entry) else {}
    config = recipe.memory_config
    overrides = [
        f"memory.{key}={settings[key]}"
        for key, stated in (("quantize", config.quantize), ("stream", config.stream))
        if stated is None and settings.get(key)
    ]
    return change_recipe(recipe, overrides) if overrides else recipe
