"""Recipe sections `optimizer`, `train` and `memory`: how the parameters are trained."""

from __future__ import annotations

import bisect
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lorakit.config.fields import (
    MAX_ACCUMULATE,
    MAX_BATCH_SIZE,
    MAX_STEPS,
    Fraction,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RecipeSection,
    StepCount,
    StrippedStr,
)
from lorakit.config.optimizer_names import (
    OPTIMIZER_NAMES,
    PRODIGY,
    SCHEDULE_FREE,
    THREE_BETAS,
    OptimizerName,
)

WarmupLength = (
    Annotated[int, Field(ge=0, le=MAX_STEPS, strict=True)] | Annotated[float, Field(gt=0, lt=1, strict=True)]
)


class OptimizerConfig(RecipeSection):
    """Optimizer and learning-rate schedule."""

    name: OptimizerName = "adamw8bit"
    """adamw, lion; in 8 bits (bitsandbytes) adamw8bit, lion8bit, ademamix8bit, which start with `paged_` if
    their state may leave a full GPU; adafactor, came; prodigy, which finds its rate (lr: 1); muon for
    matrices, with adamw for the rest; schedulefree_adamw, without a schedule. Or a class by its dotted name,
    such as `torch.optim.RAdam`, if it can be resumed in the same bytes."""
    lr: LearningRate = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "cosine_restarts", "linear", "polynomial", "rex"] = "constant"
    """Learning-rate schedule after the warmup; all but constant end at `min_lr_ratio`. rex (arXiv:2107.04197)
    falls late."""
    warmup: WarmupLength = 0
    """Steps of linear warmup, or their share of all steps if it is below 1, such as 0.05."""
    min_lr_ratio: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    """Smallest learning rate of a schedule, divided by `lr`."""
    cycles: Annotated[int, Field(ge=1, le=1000, strict=True)] | None = None
    """For cosine_restarts: number of falls from `lr`; null means 2."""
    power: PositiveFloat | None = None
    """For polynomial: exponent of the remaining share of the steps; null means 2."""
    betas: Annotated[tuple[Fraction, ...], Field(min_length=2, max_length=3)] | None = None
    """Decay rates of the moments; null means the optimizer's own, 0.9 and 0.999 for adamw."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping: gradients with a larger global norm are scaled down to it."""
    loraplus_lr_ratio: PositiveFloat = 1.0
    """Learning rate of LoRA's B divided by that of A (LoRA+, arXiv:2402.12354, uses 16)."""
    options: dict[StrippedStr, bool | int | float | str | list[bool | int | float | str] | None] = Field(
        default_factory=dict
    )
    """Further arguments of the optimizer's class, such as `{d_coef: 2}` for prodigy."""

    @model_validator(mode="after")
    def _agree(self) -> OptimizerConfig:
        if self.cycles is not None and self.schedule != "cosine_restarts":
            raise ValueError(f"optimizer.cycles is for schedule: cosine_restarts, not {self.schedule}")
        if self.power is not None and self.schedule != "polynomial":
            raise ValueError(f"optimizer.power is for schedule: polynomial, not {self.schedule}")
        if self.min_lr_ratio and self.schedule == "constant":
            raise ValueError("optimizer.min_lr_ratio is for a schedule that falls, not for constant")
        if self.name == SCHEDULE_FREE and self.schedule != "constant":
            raise ValueError(f"{self.name} averages instead of a schedule: leave out optimizer.schedule")
        if self.name == PRODIGY and self.loraplus_lr_ratio != 1:
            raise ValueError("prodigy has one learning rate: leave out optimizer.loraplus_lr_ratio")
        if self.betas and self.name in OPTIMIZER_NAMES:
            number = 3 if self.name.endswith(THREE_BETAS) else 2
            if len(self.betas) != number:
                raise ValueError(f"optimizer.betas: {self.name} has {number}, not {len(self.betas)}")
        for key in ("lr", "betas", "weight_decay", "params"):
            if key in self.options:
                raise ValueError(f"optimizer.options.{key}: write optimizer.{key}")
        return self


class TrainConfig(RecipeSection):
    """Length, batch size, checkpoints and precision of the training."""

    steps: StepCount = 1500
    """Number of optimizer steps."""
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH_SIZE, strict=True)] = 1
    """Images per forward pass and process."""
    accumulate: Annotated[int, Field(gt=0, le=MAX_ACCUMULATE, strict=True)] = 1
    """Forward passes per optimizer step."""
    seed: NonNegativeInt = 0
    """Seed of all randomness."""
    save_every: StepCount = 250
    """Steps between checkpoints: a crash costs at most this many."""
    ema_decay: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    """Moving average of the adapter, which samples, validation and files then have, such as 0.999; null for
    none."""
    keep_optimizer_states: PositiveInt = 3
    """Number of newest checkpoints that keep their optimizer state, so that they can be resumed from; the
    adapters of all checkpoints are kept."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision in which base model and adapter compute; the optimizer keeps the adapter in fp32. auto is
    bf16 on a GPU, `fp16` with automatic loss scaling on one without bf16 (Turing: T4, RTX 20xx; and older),
    fp32 on a CPU; a run keeps what it was started with."""
    deterministic: Annotated[bool, Field(strict=True)] = False
    """On a GPU, use only deterministic algorithms of torch; a CPU is deterministic anyway."""
    compile: Literal["auto"] | Annotated[bool, Field(strict=True)] = "auto"
    """Compile the repeated blocks of the base model: faster steps after a minute for each shape of images.
    Needs a C++ compiler on a CPU, Triton on a GPU; auto compiles on GPUs, in runs of 500 steps or more with
    few shapes."""
    cuda_graph: Literal["auto"] | Annotated[bool, Field(strict=True)] = "auto"
    """Record forward and backward passes once for each shape and replay them, on NVIDIA and AMD GPUs: small
    models then wait no longer for the CPU. Takes more memory; changes no result."""
    kernels: Literal["auto", "measure", "default"] = "auto"
    """Attention, memory format of convolutions and TF32: `measure` times training steps with each and keeps
    the fastest, `default` is torch's choice; auto measures on GPUs unless `deterministic`."""
    extended_at: list[StepCount] = Field(default=[])
    """Steps at which the run was extended: the learning-rate schedule starts again there, without warmup.
    Written by `lorakit train RUN --extend STEPS`."""

    @model_validator(mode="after")
    def _check_extensions(self) -> TrainConfig:
        ends = [*self.extended_at, self.steps]
        if any(end <= start for start, end in pairwise(ends)):
            raise ValueError(
                f"train.extended_at {self.extended_at} must hold increasing steps, below train.steps"
                f" ({self.steps})"
            )
        return self

    def schedule_stage(self, step: int) -> range:
        """Return the steps, counted from 0, that share the learning-rate schedule of `step`."""
        ends = [0, *self.extended_at, self.steps]
        index = min(bisect.bisect_right(ends, step), len(ends) - 1)
        return range(ends[index - 1], ends[index])


class MemoryConfig(RecipeSection):
    """Memory settings: less memory for more time. A key that is left out keeps its automatic value."""

    quantize: Literal["none", "nf4", "int8", "fp8"] | None = None
    """Quantization of the frozen base model's linear layers: `nf4` takes a quarter of the memory of bf16,
    `int8` and `fp8` half. `int8` multiplies integers, for which GPUs have faster units; `fp8` multiplies on
    GPUs from Ada and Hopper on, and only saves memory on others. The quantized weights are kept on disk."""
    gradient_checkpointing: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    """Share of the blocks that recompute their activations in the backward pass instead of keeping them."""
    stream: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    """Share of the blocks' weights that stay in the machine's memory and visit the GPU block by block."""
    offload_activations: Annotated[bool, Field(strict=True)] | None = None
    """Keep the activations that wait for the backward pass in the machine's memory: with gradient
    checkpointing the inputs of the blocks."""
    offload_modulation: Annotated[bool, Field(strict=True)] | None = None
    """Keep the modulation layers of a transformer (AdaLN) in the machine's memory, and compute them on the
    CPU: a quarter of the weights of some models for a thousandth of the work."""
    shard: Annotated[bool, Field(strict=True)] | None = None
    """With several processes: divide the frozen weights among their GPUs (FSDP2) instead of keeping all of
    them on each. The blocks are exchanged while they are needed. null follows
    `accelerate launch --use_fsdp`."""
    keep_text_encoders: Annotated[bool, Field(strict=True)] | None = None
    """For captions whose tags change with each use: true keeps the text encoders in memory and encodes each
    caption when it is used, false encodes all of them into the cache before the first step; null fills the
    cache up to 8 GiB, and keeps the text encoders for more."""
