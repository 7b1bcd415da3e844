"""Images, and conditioning images, encoded by the VAE in batches, as large as the device's memory allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorakit.models import vae
from lorakit.models.exact_batches import ExactBatches, Tensors

if TYPE_CHECKING:
    from lorakit.models.families.family import Conditioning, ConditioningTensors, Family

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
        self._device, self._dtype = network.device, network.dtype  # diffusers looks at every parameter
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
            limit = batch_limit(self._device, count)
            self._batches[key] = ExactBatches(self._encode_batch, limit=limit, reference=reference)
        return self._batches[key]

    def _encode_batch(self, pixels: list[torch.Tensor]) -> list[Tensors]:
        batch = torch.stack(pixels).to(self._device).float() / 127.5 - 1
        with torch.no_grad():
            mean = vae.encode_latents(self._network, batch.to(self._dtype)).mean.float().cpu()
        return [{"latents": row} for row in mean]


class ConditioningEncoder:
    """The denoiser's inputs from conditioning images, for each sample the bytes that it has alone."""

    def __init__(self, family: Family, pipe: Any) -> None:
        self._family, self._pipe = family, pipe
        self._device = None if pipe.vae is None else pipe.vae.device
        self._batches: dict[Any, ExactBatches[ConditioningTensors]] = {}

    def batch_size(self, images: ConditioningTensors, num_frames: int = 1) -> int:
        """Return the number of samples with conditioning images of these shapes to pass at once."""
        return self._of_shape(images, num_frames).size

    def encode(self, samples: Sequence[ConditioningTensors], num_frames: int = 1) -> list[Conditioning]:
        """Encode samples of one length whose conditioning images have the same shapes: float32 tensors on the
        CPU."""
        return self._of_shape(samples[0], num_frames).encode(samples)

    def _of_shape(self, images: ConditioningTensors, num_frames: int) -> ExactBatches[ConditioningTensors]:
        key = (num_frames, shapes_of(images))
        if key not in self._batches:
            limit = 1
            if self._device is not None and images:
                sizes = [value.shape for value in images.values()]
                pixels = sum(size[0] * size[-2] * size[-1] for size in sizes)
                limit = batch_limit(self._device, pixels * num_frames)
            encode = functools.partial(self._encode_batch, num_frames)
            self._batches[key] = ExactBatches(encode, limit=limit)
        return self._batches[key]

    def _encode_batch(self, num_frames: int, samples: list[ConditioningTensors]) -> list[Tensors]:
        """Encode the images of all samples as those of one, which `ExactBatches` compares with each alone."""
        joined = {kind: torch.cat([images[kind] for images in samples]) for kind in samples[0]}
        encoded = self._family.encode_conditioning(self._pipe, joined, num_frames)
        rows = {name: value.float().cpu().tensor_split(len(samples)) for name, value in encoded.items()}
        return [{name: parts[index] for name, parts in rows.items()} for index in range(len(samples))]


def shapes_of(images: ConditioningTensors) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the kinds of conditioning images of a sample, and their shapes."""
    return tuple((kind, tuple(value.shape)) for kind, value in images.items())


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
