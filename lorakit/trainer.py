"""One process's share of a run: the step, what is committed, and the read-only looks at it.

The state after step k is a function of the recipe, the data and the base alone: order, noise and times are
keyed by position, so a run that was stopped and started again ends in the same bytes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import adapter, batches, checkpoint, keyed, optim, sample, storage, summary, tracker
from lorakit.errors import Interrupted, NumericError
from lorakit.export import export_adapter
from lorakit.progress import Progress
from lorakit.rundir import RunFolder
from lorakit.session import Session

SKIP_BUDGET = 10  # steps with non-finite gradients that a run survives
VALIDATION_TIMES = 4  # noise levels per held-out image, one in each quarter


@dataclass
class State:
    """Where the run stands; saved whole in every checkpoint."""

    step: int = 0
    skipped: list[int] = field(default_factory=list)


class Trainer:
    """One process's share of a run."""

    def __init__(self, made: Session, accelerator: Accelerator, run: RunFolder) -> None:
        self.made, self.accelerator, self.run = made, accelerator, run
        self.recipe = made.recipe
        self.settings = made.recipe.train
        self.parameters = adapter.named_parameters(made.denoiser)
        self.optimizer = optim.build(self.parameters, made.recipe.optimizer)
        self.state = State()
        self.total_batch = made.recipe.effective_batch * accelerator.num_processes
        self.metadata = adapter.pack_metadata(made.facts())
        self.stop_signal = 0
        self.looking = False

    # one step

    def loss(self, data: Any, slots: list[batches.Slot], purpose: str, times: list[float]) -> torch.Tensor:
        """Losses (B,) of slots that share one shape; `times` are uniform numbers, one a slot."""
        device, seed = self.accelerator.device, self.settings.seed
        batch = data.batch(slots, device)
        shape = tuple(batch.latents.shape[1:])
        noise = torch.stack([keyed.normal(shape, seed, purpose, slot.position) for slot in slots]).to(device)
        u = torch.tensor(times, dtype=torch.float32).to(device)
        noisy, t, target = self.made.objective.noise(batch.latents, noise, u)
        weight_dtype = self.parameters_dtype
        cond = {name: v.to(weight_dtype) if v.is_floating_point() else v for name, v in batch.cond.items()}
        with self.accelerator.autocast():
            prediction = self.made.family.predict(self.made.denoiser, noisy.to(weight_dtype), t, cond)
        return self.made.objective.loss(prediction, target, t)

    @property
    def parameters_dtype(self) -> torch.dtype:
        """dtype of the frozen base."""
        return next(p for p in self.made.denoiser.parameters() if not p.requires_grad).dtype

    def step(self) -> tuple[float, float]:
        """One optimizer step over the whole batch; returns (mean loss, gradient norm before clipping)."""
        data, world = self.made.train, self.accelerator.num_processes
        chosen = batches.slots(self.state.step, self.total_batch, data.captions, self.settings.seed)
        mine = batches.share(chosen, self.accelerator.process_index, world)
        optim.set_rate(
            self.optimizer, optim.learning_rate(self.state.step, self.settings.steps, self.recipe.optimizer)
        )
        total = torch.zeros((), device=self.accelerator.device)
        for slots in batches.micro_batches(mine, data.shapes, self.settings.batch_size):
            times = [keyed.uniform(self.settings.seed, "time", slot.position) for slot in slots]
            loss = self.loss(data, slots, "noise", times).sum() / len(mine)
            self.accelerator.backward(loss)
            total += loss.detach()
        norm, mean = self._reduce(total)
        if math.isfinite(norm) and math.isfinite(mean):
            self.optimizer.step()
        else:
            self._skip(chosen)
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        return mean, norm

    def _reduce(self, loss: torch.Tensor) -> tuple[float, float]:
        """Average gradients and loss over processes (an adapter is a few MB: one flat reduction), then
        clip."""
        grads = [p.grad for _, p in self.parameters if p.grad is not None]
        if self.accelerator.num_processes > 1:
            flat = torch.cat([loss.view(1), *(g.flatten() for g in grads)])
            flat = self.accelerator.reduce(flat, reduction="mean")
            loss, rest = flat[0], flat[1:]
            for grad, part in zip(grads, rest.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.parameters], self.recipe.optimizer.clip)
        both = torch.stack([norm.detach(), loss]).tolist()  # the step's one wait for the device
        return both[0], both[1]

    def _skip(self, chosen: Sequence[batches.Slot]) -> None:
        self.state.skipped.append(self.state.step)
        files = sorted({self.made.train.items[slot.image].record.file for slot in chosen})
        self.say(
            f"step {self.state.step}: loss or gradient not finite, step skipped; images: {', '.join(files)}"
        )
        if len(self.state.skipped) > SKIP_BUDGET:
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
        found, problems = checkpoint.newest(self.run.path)
        for problem in problems:
            self.say(f"{problem}; falling back to the one before")
        if found is not None:
            component = self.made.family.component
            adapter.load_state(
                self.made.denoiser, component, found.adapter, f"checkpoint of step {found.step}"
            )
            optim.load_state(self.optimizer, self.parameters, found.optimizer)
            self.state = State(found.step, list(found.facts["skipped"]))
            self.say(f"going on from step {found.step}")
        if self.main:
            self.run.rewind_metrics(self.state.step)

    def commit(self) -> None:
        """Write the whole state."""
        if not self.main:
            return
        saved = checkpoint.Checkpoint(
            self.state.step,
            adapter.state(self.made.denoiser, self.made.family.component),
            optim.state_tensors(self.optimizer, self.parameters),
            {"skipped": self.state.skipped},
        )
        checkpoint.save(self.run.path, saved, self.metadata, keep=self.settings.keep)

    def finish(self) -> None:
        """Write the finished adapter, its exports and the report."""
        if not self.main:
            return
        tensors = adapter.state(self.made.denoiser, self.made.family.component)
        metadata = adapter.pack_metadata(self.made.facts() | {"steps": self.state.step})
        file = storage.write_safetensors(self.run.path / "adapter.safetensors", tensors, metadata)
        served: set[str] = set()
        for consumer in self.recipe.export:
            if consumer not in served:
                made = export_adapter(file, consumer, self.run.path / "exports", base=self.made.base)
                served |= {name for exported in made for name in exported.consumers}
        self.run.update(status="done", step=self.state.step)
        summary.write(self.run, self.recipe)

    # read-only looks at the run

    def look(self, remote: tracker.Guarded) -> None:
        """Sample and validate when this step is due for it and has not been looked at; changes no state.

        A signal in the meantime stops the looking at once: nothing is lost by it.
        """
        step, last = self.state.step, self.state.step == self.settings.steps
        self.looking = True
        try:
            if self.main and (step % self.recipe.samples.every == 0 or last):
                self._sample(remote)
            if self.main and (step % self.recipe.validate_.every == 0 or last):
                self._validate(remote)
        finally:
            self.looking = False

    def _sample(self, remote: tracker.Guarded) -> None:
        """Draw the fixed prompts."""
        step = self.state.step
        folder = self.run.path / "samples" / f"step-{step:08d}"
        if self.made.encoded is None or (folder / sample.INDEX).exists():
            return
        with self.accelerator.autocast():
            made = sample.sample(
                self.made.family,
                self.made.pipe,
                self.made.encoded,
                self.made.sampling,
                label=f"samples of step {step}",
            )
        remote.images("samples", sample.save(folder, made), step)

    def _validate(self, remote: tracker.Guarded) -> None:
        step = self.state.step
        known = any("validation_loss" in row for row in self.run.metrics() if row["step"] == step)
        value = None if known else self.validate()
        if value is not None:
            storage.append_jsonl(self.run.metrics_file, {"step": step, "validation_loss": value})
            remote.log({"validation_loss": value}, step)

    def validate(self) -> float | None:
        """Mean loss of the held-out images at fixed noise and stratified noise levels."""
        data = self.made.held_out
        if not data.items:
            return None
        losses = []
        with torch.no_grad():
            for image in range(len(data.items)):
                for part in range(VALIDATION_TIMES):
                    position = image * VALIDATION_TIMES + part
                    slot = batches.Slot(position, image, 0)
                    time_ = (part + keyed.uniform(0, "validation time", position)) / VALIDATION_TIMES
                    losses.append(float(self.loss(data, [slot], "validation", [time_])[0]))
        return sum(losses) / len(losses)

    # the loop

    def fit(self) -> None:
        """Train to the last step, committing on the way."""
        remote = tracker.Guarded(
            self.recipe.tracker if self.main else "none", self.run.path, self.recipe.dump()
        )
        if self.main:
            self.run.update(status="running")
        self.look(remote)
        steps = self.settings.steps
        smooth: float | None = None
        with Progress("train", steps, start=self.state.step, quiet=not self.main) as progress:
            while self.state.step < steps:
                began = time.monotonic()
                loss, norm = self.step()
                smooth = loss if smooth is None or math.isnan(smooth) else 0.95 * smooth + 0.05 * loss
                self.log(remote, loss, norm, time.monotonic() - began)
                progress.update(self.state.step, f"loss {smooth:.4f}")
                if self.main:
                    self.run.heartbeat("train", self.state.step, steps, progress.left)
                self._at_step(remote)
        self.finish()
        remote.close()

    def log(self, remote: tracker.Guarded, loss: float, norm: float, seconds: float) -> None:
        """Write the row of the step that was just done."""
        if not self.main:
            return
        rate = self.optimizer.param_groups[0]["lr"]
        row = {"loss": loss, "grad_norm": norm, "lr": rate, "seconds": round(seconds, 4)}
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        storage.append_jsonl(self.run.metrics_file, {"step": self.state.step, **finite})
        remote.log({name: value for name, value in finite.items() if value is not None}, self.state.step)

    def _at_step(self, remote: tracker.Guarded) -> None:
        """What happens between steps: commit first, then look, and stop if asked to."""
        step = self.state.step
        stop = self._stop_asked()
        if step % self.settings.save_every == 0 or step == self.settings.steps or stop:
            self.commit()
        if stop:
            raise Interrupted(f"stopped after step {step}, which is saved", signal_number=stop)
        try:
            self.look(remote)
        except Interrupted:
            self.commit()
            raise

    def _stop_asked(self) -> int:
        """The signal that any process received, agreed by all; 0 for none."""
        if self.accelerator.num_processes == 1:
            return self.stop_signal
        asked = torch.tensor([self.stop_signal], device=self.accelerator.device)
        return int(self.accelerator.gather(asked).max())

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """First signal: finish the step, commit, stop. Second: stop at once."""
        if self.stop_signal:
            os._exit(128 + number)
        self.stop_signal = number
        if self.looking:
            raise Interrupted(f"stopped after step {self.state.step}, which is saved", signal_number=number)
