"""The adapters of a sampling pipeline: read, and compared with the base model before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorakit import adapters
from lorakit.adapters import adapter_sum, base_fit, planning, text_encoders
from lorakit.adapters.formats import LoadedAdapter
from lorakit.adapters.sources import AdapterSource
from lorakit.core import storage
from lorakit.models.families import Family, family_for_adapter


@dataclass(frozen=True)
class ReadAdapters:
    """Adapters that fit a base model, and notes about what differs from the base model of their training."""

    sources: Sequence[AdapterSource]
    loaded: Sequence[tuple[LoadedAdapter, float]]
    notes: Sequence[str]

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of lorakit about the first adapter: resolution, frames, family, ..."""
        return self.loaded[0][0].lorakit_metadata if self.loaded else {}

    def inject(self, family: Family, pipe: Any, networks: Mapping[str, nn.Module]) -> None:
        """Inject the adapters into a loaded pipeline: one of lorakit directly, others as their sum."""
        if len(self.sources) == 1:
            (source,) = self.sources
            if adapters.fits_directly(networks, source.weights_file):
                text_encoders.add_saved_token(family, pipe, self.metadata)
                adapters.load_adapter(networks, source.weights_file, source.strength)
                return
        if self.loaded:
            adapter_sum.add_tokens(family, pipe, self.loaded)
            adapter_sum.load_adapter_sum(networks, self.loaded)


def find_family(base_folder: Path, sources: Sequence[AdapterSource]) -> Family:
    """Return the family of the base model, or that of the first adapter if it converts the model."""
    for source in sources[:1]:
        if adapters.METADATA_KEY in storage.read_safetensors_metadata(source.weights_file):
            name = adapters.read_adapter_metadata(source.weights_file).get("family")
            return family_for_adapter(base_folder, name)
    return family_for_adapter(base_folder, None)


def read_adapters(base_folder: Path, family: Family, sources: Sequence[AdapterSource]) -> ReadAdapters:
    """Read adapters of any origin and compare them with a base model whose weights need not be loaded.

    Raises ConfigError for an adapter whose family, modules or shapes do not fit.
    """
    networks = planning.meta_networks(family, base_folder) if sources else {}
    loaded, notes = [], []
    for source in sources:
        adapter = base_fit.read_for_base(source.path, family, networks)
        loaded.append((adapter, source.strength))
        differences = base_fit.base_notes(adapter.lorakit_metadata, adapter.metadata, base_folder)
        notes += [f"{source.path}: {note}" for note in differences]
    return ReadAdapters(sources, loaded, notes)
