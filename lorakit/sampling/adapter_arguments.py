"""The adapters of a sampling pipeline: parsed, read, and compared with the base model before it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorakit import adapters
from lorakit.adapters import adapter_sum, base_fit, planning, text_encoders
from lorakit.adapters.formats import LoadedAdapter
from lorakit.adapters.formats.read import ADAPTER_FILE_NAMES
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models.families import Family, family_for_adapter


@dataclass(frozen=True)
class AdapterArgument:
    """An adapter file and its strength, as a command line names them."""

    file: Path
    strength: float = 1.0

    @property
    def weights_file(self) -> Path:
        """The file with the tensors; `file` may be the folder of peft or diffusers."""
        if not self.file.is_dir():
            return self.file
        return next(self.file / name for name in ADAPTER_FILE_NAMES if (self.file / name).is_file())


@dataclass(frozen=True)
class ReadAdapters:
    """Adapters that fit a base model, and notes about what differs from the base model of their training."""

    arguments: Sequence[AdapterArgument]
    loaded: Sequence[tuple[LoadedAdapter, float]]
    notes: Sequence[str]

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of lorakit about the first adapter: resolution, frames, family, ..."""
        return self.loaded[0][0].lorakit_metadata if self.loaded else {}

    def inject(self, family: Family, pipe: Any, networks: Mapping[str, nn.Module]) -> None:
        """Inject the adapters into a loaded pipeline: one of lorakit directly, others as their sum."""
        if len(self.arguments) == 1:
            (argument,) = self.arguments
            if adapters.fits_directly(networks, argument.weights_file):
                text_encoders.add_saved_token(family, pipe, self.metadata)
                adapters.load_adapter(networks, argument.weights_file, argument.strength)
                return
        if self.loaded:
            adapter_sum.add_tokens(family, pipe, self.loaded)
            adapter_sum.load_adapter_sum(networks, self.loaded)


def parse_adapter_argument(text: str) -> AdapterArgument:
    """Parse FILE or FILE:STRENGTH; the folder of a run means its finished adapter.

    Raises ConfigError for a path without an adapter, and for a strength that is not a finite number.
    """
    path, strength = Path(text), 1.0
    head, colon, tail = text.rpartition(":")
    if colon and not path.exists():
        try:
            path, strength = Path(head), float(tail)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise ConfigError(
                f"{tail!r} is not a strength",
                where=f"--adapter {text}",
                remedy="write FILE:0.8, for instance",
            )
    return AdapterArgument(adapter_source(path), strength)


def adapter_source(path: Path) -> Path:
    """Return the adapter file of a run, the folder of peft or diffusers, or the file itself.

    Raises ConfigError if there is no adapter.
    """
    if path.is_dir() and any((path / name).is_file() for name in ADAPTER_FILE_NAMES[1:]):
        return path
    return adapters.resolve_adapter_file(path)


def find_family(base_folder: Path, arguments: Sequence[AdapterArgument]) -> Family:
    """Return the family of the base model, or that of the first adapter if it converts the model."""
    for argument in arguments[:1]:
        if adapters.METADATA_KEY in storage.read_safetensors_metadata(argument.weights_file):
            name = adapters.read_adapter_metadata(argument.weights_file).get("family")
            return family_for_adapter(base_folder, name)
    return family_for_adapter(base_folder, None)


def read_adapters(base_folder: Path, family: Family, arguments: Sequence[AdapterArgument]) -> ReadAdapters:
    """Read adapters of any origin and compare them with a base model whose weights need not be loaded.

    Raises ConfigError for an adapter whose family, modules or shapes do not fit.
    """
    networks = planning.meta_networks(family, base_folder) if arguments else {}
    loaded, notes = [], []
    for argument in arguments:
        adapter = base_fit.read_for_base(argument.file, family, networks)
        loaded.append((adapter, argument.strength))
        differences = base_fit.base_notes(adapter.lorakit_metadata, adapter.metadata, base_folder)
        notes += [f"{argument.file}: {note}" for note in differences]
    return ReadAdapters(arguments, loaded, notes)
