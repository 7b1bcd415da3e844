"""Adapters in a network, through peft: which modules, of which kind, counted, saved, loaded, made weaker.

On disk: `<component>.<module path>.<part>` in float32, where the parts are peft's own (lora_A.weight,
lokr_w1, ...), and one JSON value `lorakit` in the metadata, which holds type, rank and alpha.
"""

from __future__ import annotations

from lorakit.adapters.files import (
    METADATA_KEY,
    adapter_state_dict,
    count_trainable,
    load,
    load_adapter,
    load_adapter_state_dict,
    load_state,
    pack_metadata,
    read_adapter_metadata,
    resolve_adapter_file,
    state,
)
from lorakit.adapters.injection import (
    ADAPTER_NAME,
    adapters_disabled,
    all_trainable_parameters,
    inject_adapter,
    set_adapter_strength,
    trainable_parameters,
)
from lorakit.adapters.methods import METHODS
from lorakit.adapters.targets import (
    AdapterSpec,
    adapter_metadata,
    denoiser_adapter_spec,
    text_encoder_adapter_spec,
)

__all__ = [
    "ADAPTER_NAME",
    "METADATA_KEY",
    "METHODS",
    "AdapterSpec",
    "adapter_metadata",
    "adapter_state_dict",
    "adapters_disabled",
    "all_trainable_parameters",
    "count_trainable",
    "denoiser_adapter_spec",
    "inject_adapter",
    "load",
    "load_adapter",
    "load_adapter_state_dict",
    "load_state",
    "pack_metadata",
    "read_adapter_metadata",
    "resolve_adapter_file",
    "set_adapter_strength",
    "state",
    "text_encoder_adapter_spec",
    "trainable_parameters",
]
