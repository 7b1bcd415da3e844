"""Families whose network cannot mask padding: captions of different lengths never share a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT_MASK = "text_mask"
"""Key of a mask (L,), 1 for each text position of the caption itself. No pipeline gets it."""


@dataclass(frozen=True)
class LengthGroup:
    """Rows of a batch with captions of one length, without padding."""

    rows: torch.Tensor
    """Row numbers (n,)."""
    cond: Conditioning
    negative_cond: Conditioning | None


class UnpaddedTextFamily(Family):
    """A family that predicts and samples in groups of rows whose captions have the same length."""

    sequence_keys: ClassVar[tuple[str, ...]] = ("prompt_embeds",)
    """Names of the tensors that are as long as the caption."""

    @abstractmethod
    def _predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """Predict for captions of one length."""

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        groups = list(self._equal_length_groups(len(noisy_latents), cond))
        predictions = [
            self._predict(denoiser, noisy_latents[group.rows], timesteps[group.rows], group.cond)
            for group in groups
        ]
        return torch.cat(predictions)[torch.cat([group.rows for group in groups]).argsort()]

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        images: dict[int, Image.Image] = {}
        for group in self._equal_length_groups(len(noise), cond, negative_cond):
            samples = super().sample(pipe, group.cond, group.negative_cond, noise[group.rows], **options)
            images |= dict(zip(group.rows.tolist(), samples, strict=True))
        return [images[row] for row in range(len(noise))]

    def _equal_length_groups(
        self, count: int, cond: Conditioning, negative_cond: Conditioning | None = None
    ) -> Iterator[LengthGroup]:
        """Split `count` rows by the lengths of caption and negative: one group for each combination."""
        import torch

        conds = [cond, *([negative_cond] if negative_cond else [])]
        lengths = torch.stack([each[TEXT_MASK].sum(1).expand(count) for each in conds], dim=1)
        for combination in lengths.unique(dim=0):
            rows = (lengths == combination).all(1).nonzero()[:, 0]
            pairs = zip(conds, combination.tolist(), strict=True)
            parts = [self._select_unpadded(each, length, rows) for each, length in pairs]
            yield LengthGroup(rows, parts[0], parts[1] if negative_cond else None)

    def _select_unpadded(self, cond: Conditioning, length: int, rows: torch.Tensor) -> Conditioning:
        """Select rows, or the only one, and cut their text to `length`."""
        part = {name: value if len(value) == 1 else value[rows] for name, value in cond.items()}
        return part | {name: part[name][:, :length] for name in (*self.sequence_keys, TEXT_MASK)}

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        return {name: value for name, value in cond.items() if name != TEXT_MASK}
