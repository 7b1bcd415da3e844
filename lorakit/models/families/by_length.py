"""Families whose network cannot hide padding: captions of different lengths never share a batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.models.families.family import Conditioning, Family

if TYPE_CHECKING:
    import torch
    from PIL import Image

TEXT_MASK = "text_mask"
"""Key in a condition: which text positions are its own, (L,) of ones. No pipeline is handed it."""


class UnpaddedTextFamily(Family):
    """Predicts and draws in groups of rows whose captions are equally long, so that none is padded."""

    texts: ClassVar[tuple[str, ...]] = ("prompt_embeds",)
    """The conditions that are as long as the caption."""

    @abstractmethod
    def _predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """`predict` for captions of one length."""

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        import torch

        groups = list(self._groups(len(noisy), cond))
        made = [self._predict(denoiser, noisy[rows], t[rows], part) for rows, part in groups]
        return torch.cat(made)[torch.cat([rows for rows, _ in groups]).argsort()]

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        **options: Any,
    ) -> list[Image.Image]:
        pictures: dict[int, Image.Image] = {}
        for rows, part, *against in self._groups(len(noise), cond, *([negative] if negative else [])):
            drawn = super().sample(pipe, part, against[0] if against else None, noise[rows], **options)
            pictures |= dict(zip(rows.tolist(), drawn, strict=True))
        return [pictures[row] for row in range(len(noise))]

    def _groups(self, count: int, *conds: Conditioning) -> Iterator[tuple[Any, ...]]:
        """(row numbers, each condition's rows, unpadded) for every combination of lengths there is."""
        import torch

        lengths = torch.stack([cond[TEXT_MASK].sum(1).expand(count) for cond in conds], dim=1)
        for combination in lengths.unique(dim=0):
            rows = (lengths == combination).all(1).nonzero()[:, 0]
            yield rows, *(self._cut(*pair, rows) for pair in zip(conds, combination.tolist(), strict=True))

    def _cut(self, cond: Conditioning, length: int, rows: torch.Tensor) -> Conditioning:
        part = {name: value if len(value) == 1 else value[rows] for name, value in cond.items()}
        return part | {name: part[name][:, :length] for name in (*self.texts, TEXT_MASK)}

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        return {name: value for name, value in cond.items() if name != TEXT_MASK}
