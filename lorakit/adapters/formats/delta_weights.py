"""Delta weights: the change that an adapter makes to one weight, by method, and its dense form.

LoRA: arXiv:2106.09685. LoHa: arXiv:2108.06098. LoKr and LyCORIS' conventions: arXiv:2309.14859. DoRA:
arXiv:2402.09353. OFT: arXiv:2306.07280.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch

from lorakit.core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class DeltaWeight(ABC):
    """The change of one weight (out, in, ...); convolutions keep the axes of their kernel."""

    method: ClassVar[str]

    @property
    def needs_base(self) -> bool:
        """True if the change depends on the base model's weight."""
        return False

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank of the factors; 0 for methods without one."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""

    @abstractmethod
    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        """Return the difference (out, in, ...) in float32; `base` is the weight, for methods that need it."""

    def stored_tensors(self) -> Iterator[torch.Tensor]:
        """Yield all tensors that the delta is made of."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, DeltaWeight):
                yield from value.stored_tensors()

    def scaled(self, factor: float) -> DeltaWeight:
        """Return the same delta, `factor` times as strong."""
        return ScaledDelta(self, factor)

    def slice_outputs(self, start: int, stop: int) -> DeltaWeight:
        """Return the delta of the outputs `start` to `stop` of the weight."""
        return OutputSliceDelta(self, start, stop)


@dataclass(frozen=True, eq=False)
class LoraDelta(DeltaWeight):
    """LoRA: scale * up @ down."""

    down: torch.Tensor  # (rank, in, ...)
    up: torch.Tensor  # (out, rank, ...)
    scale: float = 1.0
    method = "lora"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.scale * product).reshape(self.shape)

    def scaled(self, factor: float) -> LoraDelta:
        return replace(self, scale=self.scale * factor)

    def reshape_to_conv(self, kernel: tuple[int, ...]) -> LoraDelta:
        """Return a flat delta (out, in * kernel size) as the delta of a convolution with this kernel."""
        if not kernel:
            return self
        up = self.up.reshape(*self.up.shape[:2], *[1] * len(kernel))
        return replace(self, down=self.down.reshape(self.rank, -1, *kernel), up=up)

    def slice_outputs(self, start: int, stop: int) -> LoraDelta:
        return replace(self, up=self.up[start:stop])


@dataclass(frozen=True, eq=False)
class FullDelta(DeltaWeight):
    """A dense difference, stored whole."""

    weight: torch.Tensor
    method = "full"

    @property
    def rank(self) -> int:
        return 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        return self.weight.float()


@dataclass(frozen=True, eq=False)
class LohaDelta(DeltaWeight):
    """LoHa: the elementwise product of two low-rank matrices, whose own scales are 1."""

    first: LoraDelta
    second: LoraDelta
    scale: float = 1.0
    method = "loha"

    @property
    def rank(self) -> int:
        return self.first.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        return self.scale * self.first.dense() * self.second.dense()

    def scaled(self, factor: float) -> LohaDelta:
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, eq=False)
class LokrDelta(DeltaWeight):
    """LoKr: the Kronecker product of a small matrix (a, b) and a second one (c, d, ...) with the kernel."""

    first: DeltaWeight
    second: DeltaWeight
    scale: float = 1.0
    method = "lokr"

    @property
    def rank(self) -> int:
        return self.second.rank or self.first.rank

    @property
    def shape(self) -> tuple[int, ...]:
        (a, b), (c, d, *kernel) = self.first.shape, self.second.shape
        return (a * c, b * d, *kernel)

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        first, second = self.first.dense(), self.second.dense()
        return self.scale * torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)

    def scaled(self, factor: float) -> LokrDelta:
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, eq=False)
class DoraDelta(DeltaWeight):
    """DoRA: a direction, and a magnitude for each output (out, 1, ...) or for each input (1, in, ...).

    The magnitude is divided by a norm: of the changed weight (`norm_of` "merged": peft, LyCORIS) or, for
    magnitudes of outputs, of the base model's weight (`norm_of` "base": ComfyUI, Forge).
    """

    direction: DeltaWeight
    magnitude: torch.Tensor
    norm_of: str = "merged"
    method = "dora"

    @property
    def needs_base(self) -> bool:
        return True

    @property
    def rank(self) -> int:
        return self.direction.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.direction.shape

    @property
    def is_per_output(self) -> bool:
        """True if there is a magnitude for each output."""
        return self.magnitude.shape[0] == self.shape[0]

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        base = _require_base(base, "DoRA")
        merged = base + self.direction.dense(base).reshape(base.shape)
        return self.magnitude.float() / self._norm(base, self.norm_of) * merged - base

    def _norm(self, base: torch.Tensor, norm_of: str) -> torch.Tensor:
        if norm_of == "base" and self.is_per_output:
            weight = base
        else:
            weight = base + self.direction.dense(base).reshape(base.shape)
        kept_axis = 0 if self.is_per_output else 1
        axes = [axis for axis in range(weight.ndim) if axis != kept_axis]
        return torch.linalg.vector_norm(weight, dim=axes, keepdim=True)

    def with_norm_of(self, norm_of: str, base: torch.Tensor) -> DoraDelta:
        """Return the same delta with magnitudes that are divided by another norm; exact for this base."""
        base = base.float()
        return replace(
            self,
            magnitude=self.magnitude.float() * self._norm(base, norm_of) / self._norm(base, self.norm_of),
            norm_of=norm_of,
        )

    def slice_outputs(self, start: int, stop: int) -> DeltaWeight:
        if not self.is_per_output:
            return super().slice_outputs(start, stop)
        return replace(
            self,
            direction=self.direction.slice_outputs(start, stop),
            magnitude=self.magnitude[start:stop],
        )


@dataclass(frozen=True, eq=False)
class OftDelta(DeltaWeight):
    """OFT: blocks of the weight's inputs or outputs, rotated by orthogonal matrices (blocks, b, b).

    One block alone is shared by all. Inputs: W' = W @ diag(rotation); outputs: W' = diag(rotation) @ W.
    With `transpose_kernels`, the convention of OneTrainer, kernels of convolutions are rotated the other way.
    """

    rotation: torch.Tensor
    side: str = "inputs"
    output_scale: torch.Tensor | None = None  # (out, 1, ...), applied to the rotated outputs
    transpose_kernels: bool = False
    angles: torch.Tensor | None = None  # (blocks, b (b - 1) / 2), peft's parameters of the rotation
    method = "oft"

    def stored_tensors(self) -> Iterator[torch.Tensor]:
        yield self.rotation
        if self.output_scale is not None:
            yield self.output_scale

    @property
    def needs_base(self) -> bool:
        return True

    @property
    def rank(self) -> int:
        return self.rotation.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight; 0 for an axis that the rotation does not determine."""
        size = 0 if len(self.rotation) == 1 else self.rotation.shape[0] * self.rotation.shape[1]
        return (0, size) if self.side == "inputs" else (size, 0)

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        base = _require_base(base, "OFT")
        flat = base.flatten(1)
        size, rotation = self.rotation.shape[-1], self.rotation.float()
        if self.transpose_kernels and base.ndim > 2:
            rotation = rotation.mT
        if self.side == "inputs":
            blocks = flat.reshape(len(flat), -1, size)  # (out, blocks, b)
            rotated = torch.einsum("onb,nbc->onc", blocks, rotation.expand(blocks.shape[1], -1, -1))
        else:
            blocks = flat.reshape(-1, size, flat.shape[1])  # (blocks, b, in)
            rotated = rotation.expand(len(blocks), -1, -1) @ blocks
        rotated = rotated.reshape(base.shape)
        return (rotated if self.output_scale is None else self.output_scale.float() * rotated) - base


@dataclass(frozen=True, eq=False)
class _WrappedDelta(DeltaWeight):
    """A delta that is computed from another one."""

    inner: DeltaWeight

    @property
    def needs_base(self) -> bool:
        return self.inner.needs_base

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape


@dataclass(frozen=True, eq=False)
class ScaledDelta(_WrappedDelta):
    """Another delta times a factor."""

    factor: float
    method = "scaled"

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        return self.factor * self.inner.dense(base)


@dataclass(frozen=True, eq=False)
class OutputSliceDelta(_WrappedDelta):
    """Some outputs of a delta whose factors cannot be sliced."""

    start: int
    stop: int
    method = "output_slice"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.inner.shape[1:])

    def dense(self, base: torch.Tensor | None = None) -> torch.Tensor:
        if self.inner.needs_base:
            raise ConfigError(f"{self.inner.method} of a fused layer cannot be split")
        return self.inner.dense()[self.start : self.stop]


def most_common_method(deltas: Mapping[str, DeltaWeight]) -> str:
    """Return the method of most modules; `none` without any."""
    methods = Counter(delta.method for delta in deltas.values())
    return methods.most_common(1)[0][0] if methods else "none"


def most_common_rank(deltas: Mapping[str, DeltaWeight]) -> int:
    """Return the rank of most modules; 0 without any."""
    ranks = Counter(delta.rank for delta in deltas.values())
    return ranks.most_common(1)[0][0] if ranks else 0


def _require_base(base: torch.Tensor | None, method: str) -> torch.Tensor:
    if base is None:
        raise ConfigError(
            f"the delta weight of {method} depends on the weights of the base model",
            remedy="give the base model that the adapter was trained on",
        )
    return base.float()
