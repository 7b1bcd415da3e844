"""Images encoded by the VAE in batches, as large as the memory of the device allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lorakit.models import vae
from lorakit.models.exact_batches import ExactBatches, Tensors

PAIR_PIXELS = 256 * 256
"""Images of at most this size are encoded at least in pairs: half the time an image, at little memory."""
CPU_BATCH_PIXELS = 128 * 128  # of an image; larger ones keep a CPU busy alone
CPU_BATCH, MAX_BATCH = 4, 16
BYTES_PER_PIXEL = 4096
"""Bytes of activations for each pixel: of SDXL's VAE in float32, a little more than measured."""


class LatentEncoder:
    """Latents of images and videos, each with the same bytes in every batch."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._batches: dict[tuple[int, ...], ExactBatches[torch.Tensor]] = {}

    def batch_size(self, shape: Sequence[int]) -> int:
        """Return the number of images (3, H, W), or videos (3, F, H, W), of a shape to pass at once."""
        return self._of_shape(shape).size

    def encode(self, pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encode uint8 images of one shape: the posterior's mean, normalized for the denoiser, float32."""
        return [one["latents"] for one in self._of_shape(pixels[0].shape).encode(pixels)]

    def _of_shape(self, shape: Sequence[int]) -> ExactBatches[torch.Tensor]:
        key = tuple(shape)
        if key not in self._batches:
            count = math.prod(key[1:])
            reference = 2 if count <= PAIR_PIXELS else 1
            limit = batch_limit(self._network.device, count)
            self._batches[key] = ExactBatches(self._encode_batch, limit=limit, reference=reference)
        return self._batches[key]

    def _encode_batch(self, pixels: list[torch.Tensor]) -> list[Tensors]:
        device, dtype = self._network.device, self._network.dtype
        batch = torch.stack(pixels).to(device).float() / 127.5 - 1
        with torch.no_grad():
            mean = vae.encode_latents(self._network, batch.to(dtype)).mean.float().cpu()
        return [{"latents": row} for row in mean]


def batch_limit(device: torch.device, num_pixels: int) -> int:
    """Return the most images of this many pixels to encode at once, a power of two."""
    if device.type == "cpu":
        return CPU_BATCH if num_pixels <= CPU_BATCH_PIXELS else 1
    fitting = _free_bytes(device) // (2 * BYTES_PER_PIXEL * num_pixels)
    return 1 << (max(1, min(MAX_BATCH, fitting)).bit_length() - 1)


def _free_bytes(device: torch.device) -> int:
    """Return the free memory of an accelerator; 0 where its driver does not say it."""
    try:
        return int(torch.accelerator.get_memory_info(device)[0])
    except (RuntimeError, AttributeError, NotImplementedError):
        return 0
