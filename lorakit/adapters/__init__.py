"""Adapters in a network, through peft: target modules, methods, injection, files, strength.

Keys of an adapter file: `<component>.<module>.<part>`, float32, where the parts are peft's own
(lora_A.weight, lokr_w1, ...). The metadata has one JSON value under `lorakit`: type, rank, alpha and more.
"""

from __future__ import annotations

from lorakit.adapters.files import (
    METADATA_KEY,
    AdapterSize,
    adapter_state_dict,
    count_trainable,
    fits_directly,
    load_adapter,
    load_adapter_state_dict,
    pack_metadata,
    read_adapter_metadata,
)
from lorakit.adapters.injection import (
    ADAPTER_NAME,
    adapters_disabled,
    all_trainable_parameters,
    cast_adapter,
    computed_dtypes,
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
    "AdapterSize",
    "AdapterSpec",
    "adapter_metadata",
    "adapter_state_dict",
    "adapters_disabled",
    "all_trainable_parameters",
    "cast_adapter",
    "computed_dtypes",
    "count_trainable",
    "denoiser_adapter_spec",
    "fits_directly",
    "inject_adapter",
    "load_adapter",
    "load_adapter_state_dict",
    "pack_metadata",
    "read_adapter_metadata",
    "set_adapter_strength",
    "text_encoder_adapter_spec",
    "trainable_parameters",
]
