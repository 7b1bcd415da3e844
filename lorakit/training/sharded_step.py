"""Steps and monitoring of a run whose base model is divided among processes.

Each pass through the network is then an exchange of all processes, so that they have to make equally many of
them: one whose images have fewer shapes than another's adds passes of weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError, MemoryLimitError
from lorakit.data import batch_sampler
from lorakit.data.batch_sampler import SampleIndex
from lorakit.data.prompts import Sample
from lorakit.models.memory import sharding
from lorakit.training.monitor import TrainingMonitor
from lorakit.training.run_folder import RunFolder
from lorakit.training.setup import Session
from lorakit.training.step import TrainingStep


def check_sharding(recipe: Recipe, num_processes: int) -> bool:
    """Return True if the base model of a run is divided among processes.

    Raises ConfigError for settings that cannot be combined with it.
    """
    if not sharding.is_requested(recipe.memory_config.shard) or num_processes == 1:
        return False
    objective = recipe.objective
    for problem, remedy in (
        (recipe.slider is not None, "leave out `slider`, or set memory.shard=false"),
        (bool(objective.output_preservation), "objective.output_preservation=0"),
    ):
        if problem:
            raise ConfigError(
                "its loss needs passes through the base model that not all processes make alike, which a base"
                " model divided among processes does not allow",
                where="memory.shard",
                remedy=remedy,
            )
    return True


def build_step(session: Session, accelerator: Accelerator, log: Callable[[str], None]) -> TrainingStep:
    """Return the steps of a session, sharded or not."""
    step_class = ShardedStep if sharding.is_sharded(session.denoiser) else TrainingStep
    return step_class(session, accelerator, log)


class ShardedStep(TrainingStep):
    """One process's share of the steps of a run whose base model is divided among processes."""

    def compute_gradients(self, samples: Sequence[SampleIndex]) -> torch.Tensor:
        """Add up the gradients of this process's samples, then take part in the passes of the others."""
        total = super().compute_gradients(samples)
        for _ in range(self._missing_passes(samples)):
            (0.0 * self._largest_forward().sum()).backward()
            self.parameters.add_gradients()
        return total

    def _missing_passes(self, samples: Sequence[SampleIndex]) -> int:
        """Return the passes that the process with most passes makes more than this one."""
        accelerator = self.accelerator
        everyone = batch_sampler.step_samples(
            self.state.step,
            self.total_batch_size,
            self.session.train_set.caption_choices,
            self.recipe.train.seed,
            first_position=self.first_position,
        )
        count = accelerator.num_processes
        shares = [batch_sampler.shard(everyone, rank, count) for rank in range(count)]
        if list(samples) != list(shares[accelerator.process_index]):
            return 0  # samples that all processes have, for a trial
        return max(map(self._count_passes, shares)) - self._count_passes(samples)

    def _count_passes(self, samples: Sequence[SampleIndex]) -> int:
        terms = [(samples, self.session.train_set.batch_shapes)]
        terms += [(term.samples, term.data.batch_shapes) for term in self.regularization.terms(samples)]
        size = self.state.micro_batch_size
        return sum(len(batch_sampler.micro_batches(own, shapes, size)) for own, shapes in terms)

    def halve_micro_batch(self, reason: str) -> None:
        """Raise MemoryLimitError: another size in one process would be another number of passes."""
        raise MemoryLimitError(
            f"out of memory with {self.state.micro_batch_size} images at once: {reason}",
            where=f"step {self.state.step}, process {self.accelerator.process_index}",
            remedy="use a smaller train.batch_size with a larger train.accumulate, or"
            " memory.gradient_checkpointing=1",
        )


class _SilentRun(RunFolder):
    """A run that is only read."""

    def log(self, text: str) -> None:
        """Do nothing."""

    def update_record(self, **values: Any) -> None:
        """Do nothing."""


class SilentMonitor(TrainingMonitor):
    """Samples and validates as the main process does, whose passes need this process, and writes nothing."""

    def __init__(self, session: Session, run: RunFolder, *arguments: Any) -> None:
        super().__init__(session, _SilentRun(run.path), *arguments)
        self.clip_scorer = None

    def _write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        pass

    def _log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        pass
