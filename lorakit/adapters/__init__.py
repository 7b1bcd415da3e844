"""Adapters in a network, through peft: which modules, of which kind, counted, saved, loaded, made weaker.

On disk: `<component>.<module path>.<part>` in float32, where the parts are peft's own (lora_A.weight,
lokr_w1, ...), and one JSON value `lorakit` in the metadata, which holds type, rank and alpha.
"""

from __future__ import annotations

from lorakit.adapters.files import (
    METADATA_KEY,
    count,
    file_of,
    load,
    load_all,
    load_state,
    load_states,
    pack_metadata,
    read_metadata,
    state,
    states,
)
from lorakit.adapters.injection import (
    NAME,
    inject,
    named_parameters,
    parameters_of,
    set_strength,
    switched_off,
)
from lorakit.adapters.methods import TYPES
from lorakit.adapters.targets import Shape, facts, shape_of, shape_of_text

__all__ = [
    "METADATA_KEY",
    "NAME",
    "TYPES",
    "Shape",
    "count",
    "facts",
    "file_of",
    "inject",
    "load",
    "load_all",
    "load_state",
    "load_states",
    "named_parameters",
    "pack_metadata",
    "parameters_of",
    "read_metadata",
    "set_strength",
    "shape_of",
    "shape_of_text",
    "state",
    "states",
    "switched_off",
]
