"""One process's share of a run: the step, what is committed, and the loop.

The state after step k is a function of the recipe, the data and the base alone: order, noise and times are
keyed by position, so a run that was stopped and started again ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.adapters.formats import export_adapter
from lorakit.core import storage
from lorakit.core.errors import Interrupted, LorakitError, NumericError, first_line
from lorakit.core.progress import Progress
from lorakit.data import batch_sampler
from lorakit.models import memory
from lorakit.training import (
    checkpoint,
    losses,
    optimizers,
    slider,
    timesteps,
    trackers,
    training_report,
)
from lorakit.training.run_folder import RunFolder
from lorakit.training.setup import Session
from lorakit.training.validation import Validator, refresh_contact_sheet

MAX_SKIPPED_STEPS = 10  # steps with non-finite gradients that a run survives


@dataclass
class TrainerState:
    """Where the run stands; saved whole in every checkpoint."""

    step: int = 0
    skipped: list[int] = field(default_factory=list)
    micro_batch: int = 1
    """Images per forward pass; halved when memory runs out, the effective batch stays."""


class Trainer:
    """One process's share of a run."""

    def __init__(self, made: Session, accelerator: Accelerator, run: RunFolder) -> None:
        self.made, self.accelerator, self.run = made, accelerator, run
        self.recipe = made.recipe
        self.settings = made.recipe.train
        self.parameters = adapters.all_trainable_parameters(made.networks)
        factor = functools.partial(text_encoders.lr_multiplier, made.recipe)
        self.optimizer = optimizers.build_optimizer(self.parameters, made.recipe.optimizer, factor)
        self.state = TrainerState(micro_batch=self.settings.batch_size)
        self.cost = slider.build_loss(made, accelerator)
        self.total_batch = made.recipe.effective_batch * accelerator.num_processes
        self.metadata = adapters.pack_metadata(made.facts())
        self.stop_signal = 0
        self.looking = False

    # one step

    def loss(self, slots: list[batch_sampler.SampleIndex], times: list[float]) -> torch.Tensor:
        """Losses (B,) of slots that share one shape; `times` are uniform numbers, one a slot."""
        return self.cost(self.made.train, slots, "noise", times)

    def step(self) -> tuple[float, float]:
        """One optimizer step over the whole batch; returns (mean loss, gradient norm before clipping)."""
        data, world = self.made.train, self.accelerator.num_processes
        dropout = self.recipe.objective.caption_dropout
        chosen = batch_sampler.step_samples(
            self.state.step, self.total_batch, data.captions, self.settings.seed, dropout
        )
        mine = batch_sampler.shard(chosen, self.accelerator.process_index, world)
        optimizers.set_learning_rate(
            self.optimizer,
            optimizers.learning_rate(self.state.step, self.settings.steps, self.recipe.optimizer),
        )
        norm, mean = self._reduce(self._gradients(mine))
        if math.isfinite(norm) and math.isfinite(mean):
            self.optimizer.step()
        else:
            self._skip(chosen)
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        return mean, norm

    def _gradients(self, mine: Sequence[batch_sampler.SampleIndex]) -> torch.Tensor:
        """Add up the gradients of this process's slots; returns their mean loss.

        Out of memory starts over with half as many images at once: the noise is keyed, so these are the same
        gradients but for rounding.
        """
        while True:
            try:
                return self._accumulate(mine)
            except torch.OutOfMemoryError as error:
                reason = first_line(error)
            self.optimizer.zero_grad(set_to_none=True)
            memory.empty_device_cache(self.accelerator.device)
            self._halve(reason)

    def _accumulate(self, mine: Sequence[batch_sampler.SampleIndex]) -> torch.Tensor:
        total = torch.zeros((), device=self.accelerator.device)
        own = losses.LossTerm(self.made.train, mine, self.loss, "time", 1.0)
        for part in (own, *self.cost.extras(mine)):
            for slots in batch_sampler.micro_batches(part.slots, part.data.shapes, self.state.micro_batch):
                loss = part.cost(slots, self._times(slots, part.clock)).sum() * part.weight / len(mine)
                self.accelerator.backward(loss)
                total += loss.detach()
        return total

    def _times(self, slots: Sequence[batch_sampler.SampleIndex], purpose: str) -> list[float]:
        positions, stratified = [slot.position for slot in slots], self.recipe.objective.stratified
        return timesteps.sample_uniforms(
            positions, self.settings.seed, purpose, self.total_batch, stratified=stratified
        )

    def _halve(self, reason: str) -> None:
        step, count = self.state.step, self.state.micro_batch
        if count == 1:
            model = self.made.denoiser
            found = memory.estimate_memory(model, self.recipe.optimizer.name, self._largest_forward)
            raise memory.memory_limit_error(self.recipe, found, step, reason)
        self.state.micro_batch = (count + 1) // 2
        self.say(
            f"step {step}: no memory for {count} images at once, going on with {self.state.micro_batch};"
            f" the effective batch stays {self.total_batch}. {reason}"
        )

    def _largest(self, count: int) -> list[batch_sampler.SampleIndex]:
        """`count` slots of the largest size in the data."""
        shapes = self.made.train.shapes
        image = max(range(len(shapes)), key=lambda i: math.prod(shapes[i]))
        return [batch_sampler.SampleIndex(position, image, 0) for position in range(count)]

    def _largest_forward(self) -> torch.Tensor:
        return self.loss(self._largest(1), [0.5])

    def rehearse(self) -> None:
        """Try the largest size before step 1, so that memory runs out now or not at all."""
        self._gradients(self._largest(self.state.micro_batch))
        self.optimizer.zero_grad(set_to_none=True)

    def _reduce(self, loss: torch.Tensor) -> tuple[float, float]:
        """Average gradients and loss over processes (an adapter is a few MB: one flat reduction), then
        clip."""
        if self.accelerator.num_processes > 1 and self.made.family.experts:
            self._complete()
        grads = [p.grad for _, p in self.parameters if p.grad is not None]
        if self.accelerator.num_processes > 1:
            flat = torch.cat([loss.view(1), *(g.flatten() for g in grads)])
            with self._together():
                flat = self.accelerator.reduce(flat, reduction="mean")
            loss, rest = flat[0], flat[1:]
            for grad, part in zip(grads, rest.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.parameters], self.recipe.optimizer.clip)
        both = torch.stack([norm.detach(), loss]).tolist()  # the step's one wait for the device
        return both[0], both[1]

    def _complete(self) -> None:
        """Zeros where another process has a gradient and this one none: its noise levels were those of
        another expert."""
        had = [float(p.grad is not None) for _, p in self.parameters]
        with self._together():
            known = self.accelerator.reduce(
                torch.tensor(had, device=self.accelerator.device), reduction="sum"
            )
        for (_, parameter), count in zip(self.parameters, known.tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _skip(self, chosen: Sequence[batch_sampler.SampleIndex]) -> None:
        self.state.skipped.append(self.state.step)
        files = sorted({self.made.train.items[slot.image].record.file for slot in chosen})
        self.say(
            f"step {self.state.step}: loss or gradient not finite, step skipped; images: {', '.join(files)}"
        )
        if len(self.state.skipped) > MAX_SKIPPED_STEPS:
            raise NumericError(
                f"{len(self.state.skipped)} steps gave non-finite numbers",
                where=f"step {self.state.step}",
                remedy="lower optimizer.lr, or use train.precision: fp32, in a new run; checkpoints are kept",
            )

    # commit, resume, finish

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def say(self, text: str) -> None:
        """Print and log in the writing process."""
        if self.main:
            self.run.say(text)

    def resume(self) -> None:
        """Go on from the newest sound checkpoint; step 0 only when there never was one."""
        found, problems = checkpoint.latest_valid_checkpoint(self.run.path)
        for problem in problems:
            self.say(f"{problem}; falling back to the one before")
        if found is not None:
            adapters.load_adapter_state_dict(
                self.made.networks, found.adapter, f"checkpoint of step {found.step}"
            )
            optimizers.load_optimizer_state_dict(self.optimizer, self.parameters, found.optimizer)
            self.state = TrainerState(found.step, **found.facts)
            self.say(f"going on from step {found.step}")
        if self.main:
            self.run.rewind_metrics(self.state.step)

    def commit(self) -> None:
        """Write the whole state."""
        if not self.main:
            return
        saved = checkpoint.Checkpoint(
            self.state.step,
            adapters.adapter_state_dict(self.made.networks),
            optimizers.optimizer_state_dict(self.optimizer, self.parameters),
            {"skipped": self.state.skipped, "micro_batch": self.state.micro_batch},
        )
        checkpoint.save_checkpoint(self.run.path, saved, self.metadata, keep=self.settings.keep)

    def finish(self) -> None:
        """Write the finished adapter, its exports and the report."""
        if not self.main:
            return
        tensors = adapters.adapter_state_dict(self.made.networks)
        metadata = adapters.pack_metadata(self.made.facts() | {"steps": self.state.step})
        file = storage.write_safetensors(self.run.path / "adapter.safetensors", tensors, metadata)
        self._export(file)
        refresh_contact_sheet(self.run.path)
        training_report.write_training_report(self.run, self.recipe, "done")
        storage.fsync_file(self.run.metrics_file)
        self.run.update(status="done", step=self.state.step)  # last: a crash before it does all this again

    def _export(self, file: Path) -> None:
        """The adapter, and a new word, for each consumer asked for."""
        served: set[str] = set()
        for consumer in self.recipe.export:
            if consumer not in served:
                made = export_adapter(file, consumer, self.run.path / "exports", base=self.made.base)
                served |= {name for exported in made for name in exported.consumers}

    # the loop

    def fit(self) -> None:
        """Train to the last step, committing on the way."""
        remote = trackers.TrackerProcess(
            self.recipe.tracker if self.main else "none", self.run.path, self.recipe.dump()
        )
        looks = Validator(self.made, self.run, self.accelerator, self.cost, remote)
        self._look(looks)
        steps = self.settings.steps
        smooth: float | None = None
        with Progress("train", steps, start=self.state.step, quiet=not self.main) as progress:
            while self.state.step < steps:
                began = time.monotonic()
                loss, norm = self.step()
                smooth = loss if smooth is None or math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
                self.log(remote, loss, norm, time.monotonic() - began)
                progress.update(self.state.step, f"loss {smooth:.4f}")
                self._at_step(looks)
        self.finish()
        remote.close()

    def log(self, remote: trackers.TrackerProcess, loss: float, norm: float, seconds: float) -> None:
        """Write the row of the step that was just done."""
        if not self.main:
            return
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"loss": loss, "grad_norm": norm, "lr": rate, "seconds": round(seconds, 4)}
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        storage.append_jsonl(self.run.metrics_file, {"step": self.state.step, **finite})
        remote.log({name: value for name, value in finite.items() if value is not None}, self.state.step)

    def _at_step(self, looks: Validator) -> None:
        """What happens between steps: commit first, then look, and stop if asked to."""
        step = self.state.step
        stop = self._stop_asked()
        if step % self.settings.save_every == 0 or step == self.settings.steps or stop:
            self.commit()
        if stop:
            raise Interrupted(f"stopped after step {step}, which is saved", signal_number=stop)
        try:
            self._look(looks)
        except Interrupted:
            self.commit()
            raise

    def _look(self, looks: Validator) -> None:
        """Changes no state, so a signal in the meantime stops it at once: nothing is lost by that."""
        if not self.main:
            return
        self.looking = True
        try:
            looks.look(self.state.step)
        finally:
            self.looking = False

    def _stop_asked(self) -> int:
        """The signal that any process received, agreed by all; 0 for none."""
        if self.accelerator.num_processes == 1:
            return self.stop_signal
        asked = torch.tensor([self.stop_signal], device=self.accelerator.device)
        with self._together():
            return int(self.accelerator.gather(asked).max())

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """What all processes do at once; it fails when one has ended, whose error is the one to read."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise LorakitError(
                "another process of this run has ended, so this one stops too",
                where=f"process {self.accelerator.process_index}, step {self.state.step}",
                remedy="see the other process's error; the same command goes on from the last checkpoint",
            ) from error

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """First signal: finish the step, commit, stop. Second: stop at once."""
        if self.stop_signal:
            os._exit(128 + number)
        self.stop_signal = number
        if self.looking:
            raise Interrupted(f"stopped after step {self.state.step}, which is saved", signal_number=number)
