"""The rules by which other programs read adapters, stated once: exports, checks and proofs all ask them.

from lorakit.adapters.formats import consumers
consumers.load_answer(tensors, "comfyui", ("flux1",))       # yes, partly or no, with the reason
consumers.layout_for("flux1", "comfyui", modules)           # the layout of ours that it reads
reading = consumers.read_tensors(tensors, rule, "flux1")    # the module and kind of every key
reading.deltas()                                            # as that program computes them
"""

from __future__ import annotations

from lorakit.adapters.formats.consumers.answers import (
    ALL_CONSUMERS,
    CONSUMERS,
    LoadAnswer,
    answer,
    check_consumer,
    divides_by_input_norm,
    fitting_families,
    layout_for,
    load_answer,
    loader_rules,
    native_path,
    rule_for,
    stem_in_layout,
    supporting_consumers,
    text_prefixes,
    unsupported_error,
    unsupported_in_layout,
    unsupported_modules,
)
from lorakit.adapters.formats.consumers.diffusers import PEFT_RULE
from lorakit.adapters.formats.consumers.reading import Reading, find_layer, read_tensors
from lorakit.adapters.formats.consumers.rules import Consumer, LoaderRule

__all__ = [
    "ALL_CONSUMERS",
    "CONSUMERS",
    "PEFT_RULE",
    "Consumer",
    "LoadAnswer",
    "LoaderRule",
    "Reading",
    "answer",
    "check_consumer",
    "divides_by_input_norm",
    "find_layer",
    "fitting_families",
    "layout_for",
    "load_answer",
    "loader_rules",
    "native_path",
    "read_tensors",
    "rule_for",
    "stem_in_layout",
    "supporting_consumers",
    "text_prefixes",
    "unsupported_error",
    "unsupported_in_layout",
    "unsupported_modules",
]
