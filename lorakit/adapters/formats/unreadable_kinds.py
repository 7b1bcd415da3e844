"""Kinds of files and tensors that lorakit does not read, each by its name, the reason and a remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorakit.core.errors import DataError

_OTHER_PROGRAM = "load the file in the program that it was made for; ComfyUI reads it"


@dataclass(frozen=True)
class _Kind:
    """A kind of file or tensor, with a pattern of its keys."""

    pattern: re.Pattern[str]
    message: str
    remedy: str


_KINDS = tuple(
    _Kind(re.compile(pattern), message, remedy)
    for pattern, message, remedy in (
        (r".+\.on_input", "this is an (IA)3 adapter, which multiplies activations and adds to no weight",
         "load it in a program with LyCORIS, or train a LoRA on the same data"),
        (r".+\.[ab][12]\.weight", "this is a GLoRA adapter, whose change depends on the weights of its base",
         _OTHER_PROGRAM + ", or train a LoRA on the same data"),
        (r"lllite_.+", "this is a ControlNet-LLLite, a control network and no adapter of weights",
         "load it in ComfyUI with a node for ControlNet-LLLite"),
        (r"(image_proj|ip_adapter)\..+", "this is an IP-Adapter, which adds attention layers",
         "load it with the IP-Adapter loader of diffusers or ComfyUI"),
        (r".+\.diff_b|.+\.lora_B\.bias|.+\.lora_up\.bias|.+\.b_norm",
         "the adapter also changes biases, which lorakit does not read", _OTHER_PROGRAM),
        (r"emb_params|clip_[lg]", "this is an embedding (textual inversion), not an adapter",
         "load it as an embedding in the program that generates images"),
    )
)  # fmt: skip
_NORM = _Kind(
    re.compile(r".+\.w_norm"), "the adapter also changes norms, which lorakit does not read", _OTHER_PROGRAM
)


def refuse_unreadable_kinds(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise DataError if any tensor is of a kind that lorakit does not read; it names kind and key."""
    for key in sorted(tensors):
        kind = next((kind for kind in (*_KINDS, _NORM) if kind.pattern.fullmatch(key)), None)
        if kind is None and key.endswith(".diff") and tensors[key].ndim < 2:
            kind = _NORM
        if kind is not None:
            raise DataError(f"{kind.message}; first key: {key[:200]}", where=where, remedy=kind.remedy)
