"""Text embeddings of captions that are encoded when they are used, by text encoders that stay loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lorakit.core.errors import NumericError
from lorakit.data.caches import TextCache, TextRequest
from lorakit.data.conditioning import ConditioningInputs
from lorakit.models import device as devices
from lorakit.models import non_finite
from lorakit.models.families.family import Conditioning
from lorakit.models.truncated_texts import collect_truncations


class TextAtUse:
    """Used like a `TextCache`: texts that it does not hold are encoded, with the same bytes."""

    def __init__(self, cache: TextCache, pipe: Any) -> None:
        self.family, self._cache, self._pipe = cache.family, cache, pipe
        weights = [weight for network in self.networks for weight in network.parameters()]
        self._device = weights[0].device if weights else torch.device("cpu")
        self._can_overflow = any(weight.dtype == torch.float16 for weight in weights)

    @property
    def networks(self) -> list[nn.Module]:
        """The text encoders."""
        return [part for part in self._pipe.components.values() if isinstance(part, nn.Module)]

    @torch.no_grad()
    def get(
        self, caption: str, size: tuple[int, int], conditioning: ConditioningInputs | None = None
    ) -> Conditioning:
        """Return the text embeddings of a caption for an image of `size` (width, height).

        They are on the device of the text encoders, so that no step waits for them.
        """
        request = TextRequest(caption, size, conditioning)
        stored = self._cache.find(request)
        if stored is not None:
            return {name: devices.copy_to(tensor, self._device) for name, tensor in stored.items()}
        with collect_truncations():  # `data check` names such captions
            embeddings = self._cache.encode(self._pipe, request)
        # only half precision overflows; the step names the images of all other values that are not finite
        if self._can_overflow and not non_finite.all_finite(embeddings.values()):
            raise NumericError(
                "the text encoders overflow in half precision",
                where=f"caption {caption[:80]!r}",
                remedy="set memory.keep_text_encoders=false: such texts are encoded in float32 beforehand",
            )
        return {name: tensor.detach().contiguous() for name, tensor in embeddings.items()}
