"""One optimizer step of a process: batch, losses, gradients, reduction, clipping, optimizer.

The host never waits for the device inside a step: batches are loaded ahead, whether a step counts is decided
on the device, and its numbers are read when they have arrived. Exceptions are loss scaling (fp16), where the
host must know whether to compute a step again, and optimizers that cannot undo a step on the device.

The state after step k is a function of the recipe, the data and the base model alone: order, noise and
timesteps are keyed by position, so that a run that was stopped and resumed ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.core.errors import DataError, ProcessEndedError, first_line
from lorakit.data import batch_sampler
from lorakit.data.batch_sampler import SampleIndex
from lorakit.models import device as devices
from lorakit.models import memory
from lorakit.models.acceleration import cpu_attention
from lorakit.models.memory import placement
from lorakit.training import (
    averaged_weights,
    memory_remedies,
    numeric_errors,
    optimizer_classes,
    optimizer_state,
    optimizers,
    schedules,
    slider,
    timesteps,
)
from lorakit.training.averaged_weights import AveragedWeights
from lorakit.training.flat_parameters import FlatParameters
from lorakit.training.loss_scale import LossScale
from lorakit.training.losses import LossTerm, RegularizationLosses
from lorakit.training.optimizer_state import FlatState
from lorakit.training.setup import Session
from lorakit.training.step_result import StepBatches, StepResult

MAX_SKIPPED_STEPS = 10  # steps with non-finite numbers that a run survives
MAX_UNREAD_STEPS = 16  # steps by which the host may be ahead of the numbers that it has read


@dataclass
class TrainerState:
    """The state of a run beside adapter and optimizer; stored in every checkpoint."""

    step: int = 0
    skipped_steps: list[int] = field(default_factory=list)
    micro_batch_size: int = 1
    """Images per forward pass; halved when memory runs out, while the effective batch size stays."""
    loss_scale: LossScale | None = None
    """Only with train.precision fp16."""

    def to_json(self) -> dict[str, Any]:
        """Return all but the step as plain values."""
        values = {"skipped_steps": self.skipped_steps, "micro_batch_size": self.micro_batch_size}
        return values | ({"loss_scale": asdict(self.loss_scale)} if self.loss_scale else {})


@contextlib.contextmanager
def collective(accelerator: Accelerator, step: int) -> Iterator[None]:
    """Turn the failure of an operation of all processes, because one has ended, into a readable error."""
    try:
        yield
    except RuntimeError as error:
        if memory.is_out_of_memory(error):
            raise
        raise ProcessEndedError(where=f"process {accelerator.process_index}, step {step}") from error


class TrainingStep:
    """One process's share of the optimizer steps of a run."""

    def __init__(self, session: Session, accelerator: Accelerator, log: Callable[[str], None]) -> None:
        self.session, self.accelerator, self.recipe, self.log = session, accelerator, session.recipe, log
        self.parameters = self._flat_parameters()
        self.optimizer = optimizers.build_optimizer(self.parameters, self.recipe.optimizer)
        self._rate_groups = optimizers.groups_by_name(self.optimizer, self.parameters, text_encoders.lr_name)
        # a CPU computes while the host waits: there is nothing to gain
        self.skips_on_device = accelerator.device.type != "cpu" and optimizers.can_skip_on_device(
            self.optimizer
        )
        self._unread: deque[StepResult] = deque()
        self._prepared: dict[int, StepBatches] = {}
        self.averages = AveragedWeights(self.parameters, self.optimizer, self.recipe.train.ema_decay)
        self.state = self._new_state()
        self.total_batch_size = self.recipe.effective_batch * accelerator.num_processes
        self.first_position = self._first_position()
        self.loss = slider.build_loss(
            self.recipe, session.family, session.pipe, session.objective, session.device
        )
        self.regularization = RegularizationLosses(self.loss, session.train_set, session.class_image_set)
        self.acceleration: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def _flat_parameters(self) -> FlatParameters:
        networks = self.session.networks
        named = adapters.all_trainable_parameters(networks)
        component_of = {
            id(parameter): component
            for component, network in networks.items()
            for parameter in network.parameters()
        }
        network_of = {name: component_of[id(parameter)] for name, parameter in named}
        multiplier = functools.partial(text_encoders.lr_multiplier, self.recipe)
        lr_multiplier = optimizers.lr_multiplier(self.recipe.optimizer, multiplier)
        compute_dtype = devices.compute_dtype(self.recipe.train.precision)
        if self.accelerator.device.type == "cpu" and compute_dtype != torch.float32:
            cpu_attention.use_matrix_products()
        dtypes: dict[torch.nn.Parameter, torch.dtype] = {}
        for network in networks.values():
            dtypes |= adapters.computed_dtypes(network, compute_dtype)
        return FlatParameters(
            named,
            network_of.__getitem__,
            lr_multiplier,
            dtype_of=dtypes.__getitem__,
            per_tensor=self.recipe.optimizer.name not in optimizer_classes.ELEMENTWISE,
        )

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """Return the adapter's tensors in float32, with averaged weights if there are any."""
        with self.averages.applied(), self.parameters.in_full_precision():
            return adapters.adapter_state_dict(self.session.networks)

    def load_adapter(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """Restore what `adapter_tensors` returned."""
        with self.parameters.in_full_precision():
            adapters.load_adapter_state_dict(self.session.networks, tensors, where)

    def _new_state(self) -> TrainerState:
        train = self.recipe.train
        scale = LossScale() if train.precision == "fp16" else None
        return TrainerState(micro_batch_size=self.session.micro_batch_size, loss_scale=scale)

    def restore_state(self, step: int, values: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint, from what `TrainerState.to_json` returned."""
        state = self._new_state()
        state.step = step
        try:
            state.skipped_steps = [int(number) for number in values["skipped_steps"]]
            state.micro_batch_size = max(1, int(values["micro_batch_size"]))
            if state.loss_scale and "loss_scale" in values:
                state.loss_scale = LossScale(**values["loss_scale"])
        except (KeyError, TypeError, ValueError) as error:
            message = f"the state of the checkpoint has impossible values: {error}"
            raise DataError(message, where=f"checkpoint of step {step}") from error
        self.state = state

    def _first_position(self) -> int:
        """Return the position in the stream of samples at which step 0 begins."""
        return batch_sampler.first_position(
            self.session.input_hashes.get("init_from"),
            len(self.session.train_set.items),
            self.total_batch_size,
        )

    def optimizer_tensors(self) -> FlatState:
        """Return the state of the optimizer and of the averaged weights, for a checkpoint."""
        return (
            optimizer_state.optimizer_state_dict(self.optimizer, self.parameters) | self.averages.state_dict()
        )

    def load_optimizer(self, flat: Mapping[str, torch.Tensor]) -> None:
        """Restore what `optimizer_tensors` returned."""
        own = {key: value for key, value in flat.items() if not averaged_weights.is_average_key(key)}
        optimizer_state.load_optimizer_state_dict(self.optimizer, self.parameters, own)
        self.averages.load_state_dict(flat)

    def run(self) -> StepResult:
        """Take one step over the whole batch; a step with non-finite numbers changes no weight.

        The result also waits for `read_results`, which records skipped steps.
        """
        state, train = self.state, self.recipe.train
        samples = self._prepare_step(state.step).samples
        lr = schedules.learning_rate(state.step, train.schedule_stage(state.step), self.recipe.optimizer)
        optimizers.set_learning_rate(self.optimizer, lr)
        result = self._compute_step(samples)
        if self.skips_on_device:
            optimizers.take_step(self.optimizer, self.parameters, result.is_finite_on_device)
            self.averages.update()
        elif result.is_finite:
            optimizers.take_step(self.optimizer, self.parameters)
            self.averages.update()
        self.parameters.zero_gradients()
        result.learning_rates = self.learning_rates()
        result.loss_scale = state.loss_scale.value if state.loss_scale else None
        state.step += 1
        self._unread.append(result)
        return result

    def read_results(self, *, wait: bool) -> Iterator[StepResult]:
        """Yield the results whose numbers have arrived, in order, and record skipped steps.

        `wait` reads all of them. Otherwise only the oldest is waited for, when too many are unread: what the
        device works on is never read, so that it always has work. Raises NumericError for too many skipped
        steps.
        """
        while self._unread:
            oldest, is_late = self._unread[0], len(self._unread) > MAX_UNREAD_STEPS
            wait = wait or (is_late and not oldest.numbers.arrives)
            if not (wait or is_late or oldest.numbers.is_ready):
                return
            result = self._unread.popleft()
            if not result.is_finite:
                self._record_skipped_step(result.step)
            yield result

    def _step_samples(self, step: int) -> list[SampleIndex]:
        return batch_sampler.step_samples(
            step,
            self.total_batch_size,
            self.session.train_set.caption_choices,
            self.recipe.train.seed,
            first_position=self.first_position,
        )

    def _prepare_step(self, step: int) -> StepBatches:
        """Return the batches of a step, and have those of the next ones loaded meanwhile, or with them."""
        size, prefetcher = self.state.micro_batch_size, self.loss.prefetcher
        before = {number: one for number, one in self._prepared.items() if one.micro_batch_size == size}
        if step not in before or prefetcher.in_thread:
            end = min(step + 1 + prefetcher.steps_ahead, self.recipe.train.steps)
            steps = range(step, max(end, step + 1))
            self._prepared = {number: before.get(number) or self._plan_step(number) for number in steps}
            prefetcher.request(
                request for batches in self._prepared.values() for request in batches.requests()
            )
        return self._prepared[step]

    def _plan_step(self, step: int) -> StepBatches:
        process, count = self.accelerator.process_index, self.accelerator.num_processes
        return self._split_batches(batch_sampler.shard(self._step_samples(step), process, count))

    def _split_batches(self, samples: Sequence[SampleIndex]) -> StepBatches:
        """Split this process's samples of a step into forward passes of one shape each."""
        own = LossTerm(self.session.train_set, samples, self.sample_losses, "time", 1.0)
        size = self.state.micro_batch_size
        passes = [
            (term, batch, self._uniforms(batch, term.timestep_purpose))
            for term in (own, *self.regularization.terms(samples))
            for batch in batch_sampler.micro_batches(term.samples, term.data.batch_shapes, size)
        ]
        return StepBatches(samples, size, passes)

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rates of this step: `lr`, and by name those of parameters with another one."""
        return {name: group["lr"] for name, group in self._rate_groups.items()}

    def _compute_step(self, samples: Sequence[SampleIndex]) -> StepResult:
        """Compute and reduce the gradients of this process's samples.

        With a loss scale they are computed again with a smaller one while they overflow. If no scale helps,
        or the loss itself is not finite, scaling is not the cause: the scale does not change. All processes
        decide alike, because the numbers are reduced before.
        """
        scale = self.state.loss_scale
        if scale is None:
            return self.reduce_and_clip(self.compute_gradients(samples))
        before = replace(scale)
        while True:
            result = self.reduce_and_clip(self.compute_gradients(samples))
            if result.is_finite:
                scale.count_good_step()
                return result
            if not math.isfinite(result.loss) or not scale.shrink():
                self.state.loss_scale = before
                return result
            self.parameters.zero_gradients()
            self.log(
                f"step {self.state.step}: gradients overflow in fp16, computed again with loss scale"
                f" {scale.value:g}"
            )

    def try_largest_batch(self) -> None:
        """Compute gradients of the largest shape before step 1, so that memory runs out then if at all."""
        self.compute_gradients(self._largest_samples(self.state.micro_batch_size))
        self.parameters.zero_gradients()

    def compute_gradients(self, samples: Sequence[SampleIndex]) -> torch.Tensor:
        """Add up the gradients of this process's samples; returns their mean loss, a scalar tensor.

        When memory runs out it starts again with half as many images at once: the noise is keyed, so the
        gradients are the same except for rounding.
        """
        while True:
            try:
                with self.acceleration():
                    return self._accumulate_gradients(samples)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                reason = first_line(error)
            self.parameters.zero_gradients()
            memory.empty_device_cache(self.accelerator.device)
            self.halve_micro_batch(reason)

    def _accumulate_gradients(self, samples: Sequence[SampleIndex]) -> torch.Tensor:
        total = torch.zeros((), device=self.accelerator.device)
        scale = self.state.loss_scale
        for term, batch, uniforms in self._batches(samples).passes:
            losses = term.loss_fn(batch, uniforms)
            loss = losses.sum() * (term.weight / len(samples))
            (loss if scale is None else loss * scale.value).backward()
            self.parameters.add_gradients()
            total += loss.detach()
        return total

    def _batches(self, samples: Sequence[SampleIndex]) -> StepBatches:
        """Return the forward passes of samples, those that are prepared if they have the size of now."""
        for batches in self._prepared.values():
            if batches.samples is samples and batches.micro_batch_size == self.state.micro_batch_size:
                return batches
        return self._split_batches(samples)

    def sample_losses(self, samples: list[SampleIndex], uniforms: list[float]) -> torch.Tensor:
        """Losses (B,) of training samples that share one shape, weighted, without regularization."""
        losses = self.loss(self.session.train_set, samples, "noise", uniforms)
        weights = self.session.train_set.loss_weights(samples)
        return losses if weights is None else losses * self._on_device(weights)

    def _on_device(self, numbers: Sequence[float]) -> torch.Tensor:
        return devices.copy_to(torch.tensor(numbers), self.accelerator.device)

    def _uniforms(self, samples: Sequence[SampleIndex], purpose: str) -> list[float]:
        return timesteps.sample_uniforms(
            [sample.position for sample in samples],
            self.recipe.train.seed,
            purpose,
            self.total_batch_size,
            stratified=self.recipe.objective.stratified_timesteps,
        )

    def halve_micro_batch(self, reason: str) -> None:
        """Use half as many images at once from now on, or recompute more blocks if it is one already.

        Raises MemoryLimitError if all blocks are recomputed.
        """
        step, size = self.state.step, self.state.micro_batch_size
        if size == 1:
            return self._recompute_more(reason)
        self.state.micro_batch_size = (size + 1) // 2
        self.log(
            f"step {step}: out of memory with {size} images at once, continuing with"
            f" {self.state.micro_batch_size}; the effective batch size stays {self.total_batch_size}."
            f" {reason}"
        )

    def _recompute_more(self, reason: str) -> None:
        """Recompute the activations of more blocks from now on, which changes no result."""
        placed, step = placement.placement_of(self.session.denoiser), self.state.step
        if placed is None or not placed.blocks or placed.checkpointing_share >= 1:
            raise memory_remedies.memory_limit_error(self.session, step, reason)
        placed.set_checkpointing(min(1.0, placed.checkpointing_share + 0.5))
        self.log(
            f"step {step}: out of memory with one image at a time, recomputing the activations of"
            f" {placed.checkpointing_share:.0%} of the blocks from now on. {reason}"
        )

    def _largest_samples(self, count: int) -> list[SampleIndex]:
        """`count` samples of the largest shape in the data."""
        shapes = self.session.train_set.batch_shapes
        image = max(range(len(shapes)), key=lambda i: math.prod(shapes[i]))
        return [self.session.train_set.sample_as_written(position, image) for position in range(count)]

    def _largest_forward(self) -> torch.Tensor:
        return self.sample_losses(self._largest_samples(1), [0.5])

    def reduce_and_clip(self, loss: torch.Tensor) -> StepResult:
        """Average gradients and loss over processes, then clip the gradients."""
        accelerator = self.accelerator
        if accelerator.num_processes > 1:
            mean = functools.partial(accelerator.reduce, reduction="mean")
            with collective(accelerator, self.state.step):
                loss = self.parameters.exchange_gradients(loss, mean)
        scale = self.state.loss_scale.value if self.state.loss_scale else 1.0
        norm = self.parameters.clip_gradients(self.recipe.optimizer.max_grad_norm, scale)
        return StepResult(self.state.step, loss, norm)

    def _record_skipped_step(self, step: int) -> None:
        """Log a step with non-finite numbers; too many of them are a NumericError."""
        skipped, items = self.state.skipped_steps, self.session.train_set.items
        skipped.append(step)
        files = sorted({items[sample.image_index].name for sample in self._step_samples(step)})
        self.log(f"step {step}: loss or gradient not finite, step skipped; images: {', '.join(files)}")
        if len(skipped) > MAX_SKIPPED_STEPS:
            raise numeric_errors.skipped_steps_error(self.session, len(skipped), step)
