"""Repair damaged keys (doubled prefixes, wrappers, trailing separators), and rename those of XLabs.

The adapter of such a file is whole; only its keys name no module. Every repair is said in a note.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorakit.core.errors import DataError

_PREFIX = (
    r"(?:transformer_2|transformer|unet|text_encoder(?:_[23])?|base_model\.model|(?:model\.)?diffusion_model)"
)
_RULES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("the name of a wrapper inside", re.compile(r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module)\."), ""),
    ("the prefix of a parallel training", re.compile(r"^module\.(?=" + _PREFIX + r"\.)"), ""),
    ("a second prefix base_model.model", re.compile(rf"^({_PREFIX})\.base_model\.model\."), r"\1."),
    ("a prefix twice", re.compile(rf"^({_PREFIX})\.(?:\1\.)+"), r"\1."),
    ("a doubled separator", re.compile(r"^(lora_(?:unet|te[123]?|transformer)|lycoris)__+"), r"\1_"),
    (
        "a separator at the end of the module's name",
        re.compile(r"[._]+(?=\.(?:lora_(?:down|up|mid|A|B)(?:\.|$)|alpha$|dora_scale$|diff$|hada_|lokr_|oft_))"),
        "",
    ),
    *(
        (
            "XLabs' name of an attention processor",
            re.compile(rf"\.processor\.{layer}_lora{number}\.(down|up)\.weight$"),
            rf".{stream}_attn.{layer}.lora_\1.weight",
        )
        for number, stream in ((1, "img"), (2, "txt"))
        for layer in ("qkv", "proj")
    ),
)  # fmt: skip


@dataclass(frozen=True)
class RepairedKeys:
    """The tensors of a file by repaired keys, and a note for each kind of damage."""

    tensors: dict[str, torch.Tensor]
    notes: tuple[str, ...]


def repair_keys(tensors: Mapping[str, torch.Tensor], where: str) -> RepairedKeys:
    """Return the tensors with repaired keys; DataError if two keys then name the same tensor."""
    repaired: dict[str, torch.Tensor] = {}
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for key in tensors:
        name = key
        for damage, pattern, replacement in _RULES:
            better = pattern.sub(replacement, name)
            if better != name:
                counts[damage] += 1
                examples.setdefault(damage, key)
                name = better
        if name in repaired:
            raise DataError(f"two keys name the same tensor, one is {key[:200]}", where=where)
        repaired[name] = tensors[key]
    notes = tuple(
        f"repaired {count} keys: {damage}, as in {examples[damage][:200]}" for damage, count in counts.items()
    )
    return RepairedKeys(repaired, notes)
