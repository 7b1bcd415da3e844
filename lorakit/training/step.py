"""One optimizer step of a process: batch, losses, gradients, reduction, clipping, optimizer.

The state after step k is a function of the recipe, the data and the base model alone: order, noise and
timesteps are keyed by position, so that a run that was stopped and resumed ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.core.errors import LorakitError, NumericError, first_line
from lorakit.data import batch_sampler
from lorakit.data.batch_sampler import SampleIndex
from lorakit.models import memory
from lorakit.training import optimizers, slider, timesteps
from lorakit.training.losses import LossTerm, RegularizationLosses
from lorakit.training.setup import Session

MAX_SKIPPED_STEPS = 10  # steps with non-finite numbers that a run survives


@dataclass
class TrainerState:
    """The state of a run beside adapter and optimizer; stored in every checkpoint."""

    step: int = 0
    skipped_steps: list[int] = field(default_factory=list)
    micro_batch_size: int = 1
    """Images per forward pass; halved when memory runs out, while the effective batch size stays."""


@dataclass(frozen=True)
class StepResult:
    """The mean loss of a step, and its gradient norm before clipping."""

    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """True if the step can be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@contextlib.contextmanager
def collective(accelerator: Accelerator, step: int) -> Iterator[None]:
    """Turn the failure of an operation of all processes, because one has ended, into a readable error."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise LorakitError(
            "another process of this run has ended, so this one stops too",
            where=f"process {accelerator.process_index}, step {step}",
            remedy="read the other process's error; the same command resumes from the last checkpoint",
        ) from error


class TrainingStep:
    """One process's share of the optimizer steps of a run."""

    def __init__(self, session: Session, accelerator: Accelerator, log: Callable[[str], None]) -> None:
        self.session, self.accelerator, self.recipe, self.log = session, accelerator, session.recipe, log
        self.parameters = adapters.all_trainable_parameters(session.networks)
        lr_multiplier = functools.partial(text_encoders.lr_multiplier, self.recipe)
        self.optimizer = optimizers.build_optimizer(self.parameters, self.recipe.optimizer, lr_multiplier)
        self.state = TrainerState(micro_batch_size=self.recipe.train.batch_size)
        self.total_batch_size = self.recipe.effective_batch * accelerator.num_processes
        self.loss = slider.build_loss(
            self.recipe, session.family, session.pipe, session.objective, session.device
        )
        self.regularization = RegularizationLosses(self.loss, session.train_set, session.class_image_set)

    def run(self) -> StepResult:
        """Take one step over the whole batch; a step with non-finite numbers changes no weight."""
        state, train = self.state, self.recipe.train
        samples = batch_sampler.step_samples(
            state.step,
            self.total_batch_size,
            self.session.train_set.captions_per_image,
            train.seed,
            self.recipe.objective.caption_dropout,
        )
        own = batch_sampler.shard(samples, self.accelerator.process_index, self.accelerator.num_processes)
        lr = optimizers.learning_rate(state.step, train.steps, self.recipe.optimizer)
        optimizers.set_learning_rate(self.optimizer, lr)
        result = self.reduce_and_clip(self.compute_gradients(own))
        if result.is_finite:
            self.optimizer.step()
        else:
            self._record_skipped_step(samples)
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return result

    def try_largest_batch(self) -> None:
        """Compute gradients of the largest shape before step 1, so that memory runs out then if at all."""
        self.compute_gradients(self._largest_samples(self.state.micro_batch_size))
        self.optimizer.zero_grad(set_to_none=True)

    def compute_gradients(self, samples: Sequence[SampleIndex]) -> torch.Tensor:
        """Add up the gradients of this process's samples; returns their mean loss, a scalar tensor.

        When memory runs out it starts again with half as many images at once: the noise is keyed, so the
        gradients are the same except for rounding.
        """
        while True:
            try:
                return self._accumulate_gradients(samples)
            except torch.OutOfMemoryError as error:
                reason = first_line(error)
            self.optimizer.zero_grad(set_to_none=True)
            memory.empty_device_cache(self.accelerator.device)
            self.halve_micro_batch(reason)

    def _accumulate_gradients(self, samples: Sequence[SampleIndex]) -> torch.Tensor:
        total = torch.zeros((), device=self.accelerator.device)
        own = LossTerm(self.session.train_set, samples, self.sample_losses, "time", 1.0)
        for term in (own, *self.regularization.terms(samples)):
            size = self.state.micro_batch_size
            for batch in batch_sampler.micro_batches(term.samples, term.data.batch_shapes, size):
                losses = term.loss_fn(batch, self._uniforms(batch, term.timestep_purpose))
                loss = losses.sum() * term.weight / len(samples)
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def sample_losses(self, samples: list[SampleIndex], uniforms: list[float]) -> torch.Tensor:
        """Losses (B,) of training samples that share one shape, without regularization."""
        return self.loss(self.session.train_set, samples, "noise", uniforms)

    def _uniforms(self, samples: Sequence[SampleIndex], purpose: str) -> list[float]:
        return timesteps.sample_uniforms(
            [sample.position for sample in samples],
            self.recipe.train.seed,
            purpose,
            self.total_batch_size,
            stratified=self.recipe.objective.stratified_timesteps,
        )

    def halve_micro_batch(self, reason: str) -> None:
        """Use half as many images at once from now on; raises MemoryLimitError if it is one already."""
        step, size = self.state.step, self.state.micro_batch_size
        if size == 1:
            estimate = memory.estimate_memory(
                self.session.denoiser, self.recipe.optimizer.name, self._largest_forward
            )
            raise memory.memory_limit_error(self.recipe, estimate, step, reason)
        self.state.micro_batch_size = (size + 1) // 2
        self.log(
            f"step {step}: out of memory with {size} images at once, continuing with"
            f" {self.state.micro_batch_size}; the effective batch size stays {self.total_batch_size}."
            f" {reason}"
        )

    def _largest_samples(self, count: int) -> list[SampleIndex]:
        """`count` samples of the largest shape in the data."""
        shapes = self.session.train_set.batch_shapes
        image = max(range(len(shapes)), key=lambda i: math.prod(shapes[i]))
        return [SampleIndex(position, image, 0) for position in range(count)]

    def _largest_forward(self) -> torch.Tensor:
        return self.sample_losses(self._largest_samples(1), [0.5])

    def reduce_and_clip(self, loss: torch.Tensor) -> StepResult:
        """Average gradients and loss over processes, in one flat reduction of a few MB, then clip."""
        accelerator = self.accelerator
        if accelerator.num_processes > 1 and self.session.family.components.experts:
            self._fill_missing_gradients()
        gradients = [p.grad for _, p in self.parameters if p.grad is not None]
        if accelerator.num_processes > 1:
            flat = torch.cat([loss.view(1), *(g.flatten() for g in gradients)])
            with collective(accelerator, self.state.step):
                flat = accelerator.reduce(flat, reduction="mean")
            loss, rest = flat[0], flat[1:]
            parts = rest.split([g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        max_grad_norm = self.recipe.optimizer.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.parameters], max_grad_norm)
        values = torch.stack([loss, norm.detach()]).tolist()  # the step's one wait for the device
        return StepResult(loss=values[0], grad_norm=values[1])

    def _fill_missing_gradients(self) -> None:
        """Set gradients to zero that another process has and this one has not, because its timesteps were
        those of another expert."""
        device = self.accelerator.device
        present = torch.tensor([float(p.grad is not None) for _, p in self.parameters], device=device)
        with collective(self.accelerator, self.state.step):
            counts = self.accelerator.reduce(present, reduction="sum")
        for (_, parameter), count in zip(self.parameters, counts.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _record_skipped_step(self, samples: Sequence[SampleIndex]) -> None:
        """Log a step with non-finite numbers; too many of them are a NumericError."""
        state, items = self.state, self.session.train_set.items
        state.skipped_steps.append(state.step)
        files = sorted({items[sample.image_index].record.file for sample in samples})
        self.log(f"step {state.step}: loss or gradient not finite, step skipped; images: {', '.join(files)}")
        if len(state.skipped_steps) > MAX_SKIPPED_STEPS:
            raise NumericError(
                f"{len(state.skipped_steps)} steps gave non-finite numbers",
                where=f"step {state.step}",
                remedy="lower optimizer.lr, or use train.precision: fp32, in a new run; checkpoints are kept",
            )
