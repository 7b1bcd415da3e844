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
    re.compile(r".+\.w_norm|.+_norm\.scale"),
    "the adapter also changes norms, which lorakit does not read",
    _OTHER_PROGRAM,
)


_BESIDE_WEIGHTS = ("biases", "norms")


def without_biases_and_norms(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the tensors that change weights, and a note on the others; for inspection."""
    kept, counts = {}, dict.fromkeys(_BESIDE_WEIGHTS, 0)
    for key, tensor in tensors.items():
        kind = _kind_of(key, tensor)
        word = next((word for word in _BESIDE_WEIGHTS if kind and word in kind.message), None)
        if word is None:
            kept[key] = tensor
        else:
            counts[word] += 1
    notes = tuple(
        f"{count} tensors change {word}: they are not read, and a conversion refuses the file"
        for word, count in counts.items()
        if count
    )
    return kept, notes


def _kind_of(key: str, tensor: torch.Tensor) -> _Kind | None:
    kind = next((kind for kind in (*_KINDS, _NORM) if kind.pattern.fullmatch(key)), None)
    return _NORM if kind is None and key.endswith(".diff") and tensor.ndim < 2 else kind


def refuse_unreadable_kinds(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise DataError if any tensor is of a kind that lorakit does not read; it names kind and key."""
    for key in sorted(tensors):
        if (kind := _kind_of(key, tensors[key])) is not None:
            raise DataError(f"{kind.message}; first key: {key[:200]}", where=where, remedy=kind.remedy)
