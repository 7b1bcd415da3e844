"""Networks that return NaN or infinity: the check, the likely cause, and what to do about it.

A remedy is named only where it can help: the VAE and the text encoders of a run have no setting for their
precision, so their errors name the damaged weights, the settings or the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lorakit.core.errors import NumericError
from lorakit.models import vae as vaes

NEW_DOWNLOAD = "download the base model again, or use another copy of it"


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return True if no tensor contains NaN or infinity."""
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def find_damaged_weight(networks: Mapping[str, Any]) -> str | None:
    """Return the name (component.tensor) of a weight with NaN or infinity; None if there is none.

    Components that are not networks are ignored.
    """
    for component, network in networks.items():
        if not isinstance(network, nn.Module):
            continue
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if tensor.is_floating_point() and tensor.device.type != "meta" and not all_finite([tensor]):
                return f"{component}.{name}"
    return None


def damaged_weight_error(weight: str) -> NumericError:
    """Return the error for a weight of the base model with NaN or infinity."""
    return NumericError(
        "the weights of the base model contain NaN or infinity", where=weight, remedy=NEW_DOWNLOAD
    )


def vae_error(vae: Any, source: str) -> NumericError:
    """Return the error for latents of the file `source` that are not finite; the VAE computes in float32."""
    if weight := find_damaged_weight({"vae": vae}):
        return damaged_weight_error(weight)
    if setting := vaes.find_bad_statistics(vae):
        return NumericError(
            f"a setting of the VAE makes all latents infinite: {setting}",
            where="vae/config.json of the base model",
            remedy=NEW_DOWNLOAD,
        )
    if not _is_finite(lambda: [vaes.encode_gray(vae).mean]):
        return NumericError(
            "the VAE returns NaN or infinity for every image: its weights are too large",
            where=source,
            remedy=NEW_DOWNLOAD,
        )
    return NumericError(
        "the VAE returns NaN or infinity for this file, and not for a gray image",
        where=source,
        remedy='leave the file out: "keep": false and a "reason" in its line of manifest.jsonl',
    )


def text_error(
    networks: Mapping[str, Any], encode_empty: Callable[[], Iterable[torch.Tensor]], source: str
) -> NumericError:
    """Return the error for text embeddings of `source` that are not finite in float32 either.

    `encode_empty` encodes an empty text.
    """
    if weight := find_damaged_weight(networks):
        return damaged_weight_error(weight)
    if not _is_finite(encode_empty):
        return NumericError(
            "the text encoders return NaN or infinity for every text: their weights are too large",
            where=source,
            remedy=NEW_DOWNLOAD,
        )
    return NumericError(
        "the text encoders return NaN or infinity for this text, and not for an empty one",
        where=source,
        remedy="change this text",
    )


def _is_finite(compute: Callable[[], Iterable[torch.Tensor]]) -> bool:
    with torch.no_grad():
        return all_finite(compute())
