"""Caches of text embeddings, latents and conditioning latents, addressed by content."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit.core.errors import NumericError
from lorakit.core.progress import Progress
from lorakit.data import mask_cache, tensor_cache
from lorakit.data.conditioning import ConditioningInputs, record_conditioning
from lorakit.data.items import DatasetItem
from lorakit.data.load_ahead import decoding_threads, load_ahead
from lorakit.imaging import resize
from lorakit.models import base_model, non_finite
from lorakit.models.exact_batches import ExactBatches
from lorakit.models.families.family import Conditioning, ConditioningTensors, Family
from lorakit.models.vae_batches import ConditioningEncoder, LatentEncoder, shapes_of

Size = tuple[int, int]
TEXT_BATCH = 16  # captions
MIN_TEXTS = 8  # captions for which it pays to encode them together


@dataclass(frozen=True)
class TextRequest:
    """A caption to encode, the size (width, height) of its image, and the conditioning images with it."""

    caption: str
    size: Size
    conditioning: ConditioningInputs | None = None


class TextCache:
    """Text embeddings, addressed by caption and text encoders.

    The image size counts only where the family's text embeddings depend on it, the conditioning images only
    where its text encoder reads them.
    """

    def __init__(self, family: Family, base: Path, dtype: torch.dtype, folder: Path | None = None) -> None:
        self.family = family
        self._store = tensor_cache.TensorCache("text", folder)
        hashes = base_model.component_hashes(base)
        prefixes = family.text.component_prefixes
        self._encoders = {k: v for k, v in hashes.items() if k.startswith(prefixes) or not k}
        self.dtype = dtype

    def key(self, request: TextRequest) -> str:
        """Return the key of a caption's text embeddings."""
        parts: dict[str, Any] = {
            "encoders": self._encoders,
            "dtype": str(self.dtype),
            "family": self.family.name,
            "version": "text-1",
        }
        if self.family.text.depends_on_size:
            parts["size"] = request.size
        if self.family.conditioning.read_by_text_encoder and request.conditioning is not None:
            parts["conditioning"] = request.conditioning.cache_key
        return tensor_cache.cache_key(caption=request.caption, **parts)

    def missing(self, requests: Iterable[TextRequest]) -> list[TextRequest]:
        """Return the requests that have no intact entry, one for each entry."""
        by_key = {self.key(request): request for request in requests}
        missing = self._store.missing(by_key)
        return [request for key, request in by_key.items() if key in missing]

    def fill(
        self,
        requests: Sequence[TextRequest],
        pipe: Any,
        dtype: torch.dtype = torch.float32,
        *,
        quiet: bool = False,
    ) -> list[TextRequest]:
        """Encode captions with text encoders of data type `dtype` and store their embeddings.

        Returns the requests that overflow in half precision, which are not stored: encode them in float32.
        Embeddings that are not finite in float32 are a NumericError.
        """
        overflowing = []
        with Progress("text", len(requests), quiet=quiet) as progress, self._store.writing():
            for request, embeddings in self._encode_all(requests, pipe):
                if non_finite.all_finite(embeddings.values()):
                    self._store.put(self.key(request), embeddings, f"caption {request.caption[:80]!r}")
                elif dtype != torch.float32:
                    overflowing.append(request)
                else:
                    raise self._error(pipe, request)
                progress.update(progress.done + 1)
        return overflowing

    def _encode_all(
        self, requests: Sequence[TextRequest], pipe: Any
    ) -> Iterator[tuple[TextRequest, Conditioning]]:
        """Yield the embeddings of captions, encoded together where that gives the same bytes."""
        if len(requests) < MIN_TEXTS or not self._has_one_length(pipe):
            yield from ((request, self.encode(pipe, request)) for request in requests)
            return
        batches = ExactBatches(functools.partial(self._encode_together, pipe), limit=TEXT_BATCH)
        start = 0
        while chunk := requests[start : start + batches.size]:
            yield from zip(chunk, batches.encode(chunk), strict=True)
            start += len(chunk)

    def _encode_together(self, pipe: Any, requests: list[TextRequest]) -> list[Conditioning]:
        if len(requests) == 1:
            return [self.encode(pipe, requests[0])]
        return self.family.encode_texts_together(pipe, [request.caption for request in requests])

    def _has_one_length(self, pipe: Any) -> bool:
        """Return True if the pipeline encodes plain text, and pads every caption to one length."""
        own_code = getattr(self.family.encode_text, "__func__", None) is not Family.encode_text
        if own_code or self.family.conditioning.read_by_text_encoder or self.family.text.depends_on_size:
            return False
        short, long = (self.family.encode_text(pipe, [text])[0] for text in ("", "a photo of a dog"))
        return all(value.shape == long[name].shape for name, value in short.items())

    def encode(self, pipe: Any, request: TextRequest) -> Conditioning:
        """Return text embeddings by the text encoders in `pipe`, which are not stored."""
        images = None
        if request.conditioning and self.family.conditioning.read_by_text_encoder:
            images = request.conditioning.load_tensors()
        return self.family.encode_text(pipe, [request.caption], request.size, images)[0]

    def _error(self, pipe: Any, request: TextRequest) -> NumericError:
        prefixes = self.family.text.component_prefixes
        networks = {name: part for name, part in pipe.components.items() if name.startswith(prefixes)}
        return non_finite.text_error(
            networks,
            lambda: self.encode(pipe, replace(request, caption="")).values(),
            f"caption {request.caption[:80]!r}",
        )

    def find(self, request: TextRequest) -> Conditioning | None:
        """Return stored text embeddings; None if there are none."""
        return self._store.get(self.key(request))

    def get(self, caption: str, size: Size, conditioning: ConditioningInputs | None = None) -> Conditioning:
        """Return text embeddings that were stored before."""
        return self._store.require(self.key(TextRequest(caption, size, conditioning)))


class LatentCache:
    """Latents of images and videos, addressed by content hash, crop, size, VAE and data type."""

    def __init__(
        self,
        base: Path,
        cache_folder: Path | None = None,
        vae_overrides: Mapping[str, Any] | None = None,
        gray_unmasked: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`vae_overrides` are the family's own VAE settings, which change latents of the same weights;
        `gray_unmasked` replaces the pixels outside an image's mask with gray. Latents are stored in `dtype`.
        """
        self._gray_unmasked, self.dtype = gray_unmasked, dtype
        self._vae_overrides = dict(vae_overrides or {})
        self._store = tensor_cache.TensorCache("latents", cache_folder)
        self._vae_hash = base_model.component_hashes(base).get("vae", "")

    def key(self, item: DatasetItem) -> str:
        """Return the key of an item's latents."""
        parts: dict[str, Any] = {"vae": self._vae_hash, "version": "mean-3", "dtype": str(self.dtype)}
        if self._vae_overrides:
            parts["settings"] = self._vae_overrides
        if item.frame_indices:
            parts["frames"] = item.frame_indices
        if self._gray_unmasked and item.record.mask is not None:
            parts["gray_unmasked"] = mask_cache.record_mask_hash(item.folder, item.record)
        return tensor_cache.cache_key(
            content_hash=item.record.content_hash, crop=item.crop, size=item.bucket, **parts
        )

    def missing(self, items: Sequence[DatasetItem]) -> list[DatasetItem]:
        """Return the items that have no intact entry."""
        return _missing_items(self._store, items, self.key)

    def fill(self, items: Sequence[DatasetItem], pipe: Any, *, quiet: bool = False) -> None:
        """Encode images and store their latents: the posterior's mean, normalized for the denoiser.

        Images of one shape are encoded together, while the next ones are read.
        """
        encoder = LatentEncoder(pipe.vae)
        ordered = sorted(items, key=lambda item: item.batch_shape)
        with Progress("latents", len(items), quiet=quiet) as progress, self._store.writing():
            threads = decoding_threads(pipe.vae.device)
            chunk: list[tuple[DatasetItem, torch.Tensor]] = []
            for item, pixels in load_ahead(ordered, self._load_pixels, threads=threads):
                if chunk and chunk[0][1].shape != pixels.shape:
                    self._encode(chunk, encoder, pipe.vae)
                    chunk = []
                chunk.append((item, pixels))
                if len(chunk) >= encoder.batch_size(pixels.shape):
                    self._encode(chunk, encoder, pipe.vae)
                    chunk = []
                progress.update(progress.done + 1)
            if chunk:
                self._encode(chunk, encoder, pipe.vae)

    def _encode(
        self, chunk: Sequence[tuple[DatasetItem, torch.Tensor]], encoder: LatentEncoder, network: Any
    ) -> None:
        means = encoder.encode([pixels for _, pixels in chunk])
        for (item, _), mean in zip(chunk, means, strict=True):
            if not non_finite.all_finite([mean]):
                raise non_finite.vae_error(network, item.name)
            group = "latents-" + "x".join(map(str, item.batch_shape))
            self._store.put(self.key(item), {"latents": mean.to(self.dtype)}, item.name, group)

    def _load_pixels(self, item: DatasetItem) -> torch.Tensor:
        """Return uint8 (3, H, W), or (3, F, H, W) for base models that generate videos."""
        record, crop, bucket = item.record, item.crop, item.bucket
        if record.video and item.frame_indices:
            return resize.load_video_tensor(item.folder, record, crop, bucket, item.frame_indices)
        load = mask_cache.load_image_gray_unmasked if self._gray_unmasked else resize.load_image_tensor
        image = load(item.folder, record, crop, bucket)
        return image[:, None] if item.frame_indices else image

    def __getitem__(self, item: DatasetItem) -> torch.Tensor:
        return self._store.require(self.key(item))["latents"].float()


class ConditioningCache:
    """The denoiser's inputs from conditioning images, addressed by their content."""

    def __init__(self, family: Family, base: Path, cache_folder: Path | None = None) -> None:
        self.family = family
        self._store = tensor_cache.TensorCache("conditioning", cache_folder)
        hashes = base_model.component_hashes(base)
        self._key_parts = {"vae": hashes.get("vae", ""), "family": family.name, "version": "mean-1"}
        for name in family.components.image_encoders:
            self._key_parts[name] = hashes.get(name, "")

    def conditioning_inputs(self, item: DatasetItem) -> ConditioningInputs:
        """Return the conditioning images of an item; none in most families."""
        frame = item.frame_indices[0] if item.record.video and item.frame_indices else None
        return record_conditioning(self.family, item.folder, item.record, item.crop, item.bucket, frame)

    def _num_frames(self, item: DatasetItem) -> int:
        """Return the length that an item's conditioning belongs to; 1 in most families."""
        return len(item.frame_indices) if self.family.conditioning.depends_on_frames else 1

    def _key(self, item: DatasetItem) -> str:
        parts: dict[str, Any] = dict(self._key_parts)
        if self.family.conditioning.depends_on_frames:
            parts["frames"] = self._num_frames(item)
        return tensor_cache.cache_key(conditioning=self.conditioning_inputs(item).cache_key, **parts)

    def missing(self, items: Sequence[DatasetItem]) -> list[DatasetItem]:
        """Return the items with conditioning images that have no intact entry."""
        with_images = [item for item in items if self.conditioning_inputs(item).count]
        return _missing_items(self._store, with_images, self._key)

    def fill(self, items: Sequence[DatasetItem], pipe: Any, *, quiet: bool = False) -> None:
        """Encode and store the items' conditioning images, those of one shape together."""
        threads = 0 if pipe.vae is None else decoding_threads(pipe.vae.device)
        encoder = ConditioningEncoder(self.family, pipe)
        ordered = sorted(items, key=self._batch_order)
        ahead = load_ahead(ordered, lambda one: self.conditioning_inputs(one).load_tensors(), threads=threads)
        with Progress("conditioning", len(items), quiet=quiet) as progress, self._store.writing():
            chunk: list[tuple[DatasetItem, ConditioningTensors]] = []
            for item, images in ahead:
                if chunk and self._shapes(*chunk[0]) != self._shapes(item, images):
                    self._encode(chunk, encoder, pipe.vae)
                    chunk = []
                chunk.append((item, images))
                if len(chunk) >= encoder.batch_size(images, self._num_frames(item)):
                    self._encode(chunk, encoder, pipe.vae)
                    chunk = []
                progress.update(progress.done + 1)
            if chunk:
                self._encode(chunk, encoder, pipe.vae)

    def _batch_order(self, item: DatasetItem) -> tuple[Any, ...]:
        return item.bucket, self._num_frames(item), self.conditioning_inputs(item).count

    def _shapes(self, item: DatasetItem, images: ConditioningTensors) -> tuple[Any, ...]:
        return self._num_frames(item), shapes_of(images)

    def _encode(
        self,
        chunk: Sequence[tuple[DatasetItem, ConditioningTensors]],
        encoder: ConditioningEncoder,
        network: Any,
    ) -> None:
        encoded = encoder.encode([images for _, images in chunk], self._num_frames(chunk[0][0]))
        for (item, _), tensors in zip(chunk, encoded, strict=True):
            if network is not None and not non_finite.all_finite(tensors.values()):
                raise non_finite.vae_error(network, f"conditioning images of {item.name}")
            group = "conditioning-" + "x".join(map(str, item.bucket))
            self._store.put(self._key(item), tensors, item.name, group)

    def __getitem__(self, item: DatasetItem) -> Conditioning:
        return self._store.require(self._key(item)) if self.conditioning_inputs(item).count else {}


def _missing_items(
    store: tensor_cache.TensorCache, items: Sequence[DatasetItem], key: Callable[[DatasetItem], str]
) -> list[DatasetItem]:
    keys = [key(item) for item in items]
    missing = store.missing(keys)
    return [item for item, one in zip(items, keys, strict=True) if one in missing]
