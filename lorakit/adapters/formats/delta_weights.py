"""What an adapter does to one weight: the kinds of changes, their full matrices, and their low-rank forms.

LoRA: arXiv:2106.09685. LoHa: arXiv:2108.06098. LoKr and LyCORIS' conventions: arXiv:2309.14859. DoRA:
arXiv:2402.09353. OFT: arXiv:2306.07280.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch

from lorakit.core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class DeltaWeight(ABC):
    """The change of one weight (out, in, ...); convolutions keep their kernel's axes."""

    kind: ClassVar[str]

    @property
    def needs_base(self) -> bool:
        """Whether the change depends on the weight that it changes."""
        return False

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank that the kind states; 0 where it has none."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""

    @abstractmethod
    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        """The difference (out, in, ...) in float32; `base` is the weight, for kinds that need it."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """All stored numbers."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, DeltaWeight):
                yield from value.tensors()

    def scaled(self, factor: float) -> DeltaWeight:
        """The same change, `factor` times as strong."""
        return ScaledDelta(self, factor)

    def rows(self, start: int, stop: int) -> DeltaWeight:
        """The change of some of the weight's outputs."""
        return OutputSliceDelta(self, start, stop)


@dataclass(frozen=True, eq=False)
class LoraDelta(DeltaWeight):
    """scale * up @ down."""

    down: torch.Tensor  # (rank, in, ...)
    up: torch.Tensor  # (out, rank, ...)
    scale: float = 1.0
    kind = "lora"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.scale * product).reshape(self.shape)

    def scaled(self, factor: float) -> LoraDelta:
        return replace(self, scale=self.scale * factor)

    def with_kernel(self, kernel: tuple[int, ...]) -> LoraDelta:
        """A flat change (out, in * numbers of the kernel) as that of a convolution."""
        if not kernel:
            return self
        up = self.up.reshape(*self.up.shape[:2], *[1] * len(kernel))
        return replace(self, down=self.down.reshape(self.rank, -1, *kernel), up=up)

    def rows(self, start: int, stop: int) -> LoraDelta:
        return replace(self, up=self.up[start:stop])


@dataclass(frozen=True, eq=False)
class FullDelta(DeltaWeight):
    """The difference itself."""

    weight: torch.Tensor
    kind = "full"

    @property
    def rank(self) -> int:
        return 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        return self.weight.float()


@dataclass(frozen=True, eq=False)
class LohaDelta(DeltaWeight):
    """LoHa: the elementwise product of two low-rank matrices; `one` and `two` have scale 1."""

    one: LoraDelta
    two: LoraDelta
    scale: float = 1.0
    kind = "loha"

    @property
    def rank(self) -> int:
        return self.one.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.one.shape

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        return self.scale * self.one.delta() * self.two.delta()

    def scaled(self, factor: float) -> LohaDelta:
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, eq=False)
class LokrDelta(DeltaWeight):
    """LoKr: the Kronecker product of a small matrix (a, b) and another (c, d, ...), which has the kernel."""

    one: DeltaWeight
    two: DeltaWeight
    scale: float = 1.0
    kind = "lokr"

    @property
    def rank(self) -> int:
        return self.two.rank or self.one.rank

    @property
    def shape(self) -> tuple[int, ...]:
        (a, b), (c, d, *kernel) = self.one.shape, self.two.shape
        return (a * c, b * d, *kernel)

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        one, two = self.one.delta(), self.two.delta()
        return self.scale * torch.kron(one.reshape(*one.shape, *[1] * (two.ndim - 2)), two)

    def scaled(self, factor: float) -> LokrDelta:
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, eq=False)
class DoraDelta(DeltaWeight):
    """A change of direction, and a magnitude for each output (out, 1, ...) or each input (1, in, ...).

    What the magnitude is divided by differs: the norm of the changed weight (peft, LyCORIS, `over` "merged")
    or, for magnitudes of outputs, that of the base (ComfyUI and Forge, `over` "base").
    """

    inner: DeltaWeight
    magnitude: torch.Tensor
    over: str = "merged"
    kind = "dora"

    @property
    def needs_base(self) -> bool:
        return True

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def by_output(self) -> bool:
        """Whether there is a magnitude for each output."""
        return self.magnitude.shape[0] == self.shape[0]

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        base = _require_base(base, "DoRA")
        merged = base + self.inner.delta(base).reshape(base.shape)
        return self.magnitude.float() / self._norm(base, self.over) * merged - base

    def _norm(self, base: torch.Tensor, over: str) -> torch.Tensor:
        weight = (
            base if over == "base" and self.by_output else base + self.inner.delta(base).reshape(base.shape)
        )
        kept = 0 if self.by_output else 1
        axes = [axis for axis in range(weight.ndim) if axis != kept]
        return torch.linalg.vector_norm(weight, dim=axes, keepdim=True)

    def restated(self, over: str, base: torch.Tensor) -> DoraDelta:
        """The same change with its magnitudes stated over another norm; exact, for this base."""
        base = base.float()
        return replace(
            self,
            magnitude=self.magnitude.float() * self._norm(base, over) / self._norm(base, self.over),
            over=over,
        )

    def rows(self, start: int, stop: int) -> DeltaWeight:
        if not self.by_output:
            return super().rows(start, stop)
        return replace(self, inner=self.inner.rows(start, stop), magnitude=self.magnitude[start:stop])


@dataclass(frozen=True, eq=False)
class OftDelta(DeltaWeight):
    """OFT: blocks of the weight's inputs or outputs, turned by orthogonal matrices `turn` (blocks, b, b).

    A single block is shared by all. Inputs: W' = W @ diag(turn); outputs: W' = diag(turn) @ W.
    With `backwards`, as OneTrainer trains, the kernels of convolutions are turned the other way.
    """

    turn: torch.Tensor
    side: str = "inputs"
    factors: torch.Tensor | None = None  # (out, 1, ...), of the outputs after they were turned
    backwards: bool = False
    kind = "oft"

    @property
    def needs_base(self) -> bool:
        return True

    @property
    def rank(self) -> int:
        return self.turn.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes that a rotation does not tell are 0."""
        size = 0 if len(self.turn) == 1 else self.turn.shape[0] * self.turn.shape[1]
        return (0, size) if self.side == "inputs" else (size, 0)

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        base = _require_base(base, "OFT")
        flat = base.flatten(1)
        size, turn = self.turn.shape[-1], self.turn.float()
        if self.backwards and base.ndim > 2:
            turn = turn.mT
        if self.side == "inputs":
            blocks = flat.reshape(len(flat), -1, size)  # (out, blocks, b)
            turned = torch.einsum("onb,nbc->onc", blocks, turn.expand(blocks.shape[1], -1, -1))
        else:
            blocks = flat.reshape(-1, size, flat.shape[1])  # (blocks, b, in)
            turned = turn.expand(len(blocks), -1, -1) @ blocks
        turned = turned.reshape(base.shape)
        return (turned if self.factors is None else self.factors.float() * turned) - base


@dataclass(frozen=True, eq=False)
class _WrappedDelta(DeltaWeight):
    """What is made of another change."""

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
    """Another change, stronger or weaker."""

    factor: float
    kind = "scaled"

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        return self.factor * self.inner.delta(base)


@dataclass(frozen=True, eq=False)
class OutputSliceDelta(_WrappedDelta):
    """Some outputs of a change whose form cannot be cut."""

    start: int
    stop: int
    kind = "rows"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.inner.shape[1:])

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        if self.inner.needs_base:
            raise ConfigError(f"{self.inner.kind} of a fused layer cannot be taken apart")
        return self.inner.delta()[self.start : self.stop]


def _require_base(base: torch.Tensor | None, kind: str) -> torch.Tensor:
    if base is None:
        raise ConfigError(
            f"what {kind} changes depends on the base's weights", remedy="give the base it was trained on"
        )
    return base.float()
