"""A run of one process: resume, steps, checkpoints, validation, signals, results."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator

from lorakit import adapters
from lorakit.adapters.publishing.export_run import export_source
from lorakit.adapters.sources import AdapterSource
from lorakit.config.recipe import TrackerConfig
from lorakit.core import storage
from lorakit.core.errors import Interrupted, LorakitError
from lorakit.core.progress import Progress
from lorakit.models.memory import sharding
from lorakit.training import (
    checkpoint,
    run_identity,
    run_results,
    sample_sheet,
    sharded_step,
    trackers,
    training_report,
)
from lorakit.training.monitor import TrainingMonitor
from lorakit.training.run_changes import SessionChanges
from lorakit.training.run_folder import RunFolder
from lorakit.training.setup import Session
from lorakit.training.step import TrainerState, collective
from lorakit.training.step_result import StepResult

SAME_SIGNAL_SECONDS = 0.5  # within which a second signal is the first one again
LOG_SECONDS = 1.0  # between writes to metrics.jsonl: a file opened anew for each short step costs 1 % of it


class Trainer:
    """One process's share of a run; only the main process writes."""

    def __init__(self, session: Session, accelerator: Accelerator, run: RunFolder) -> None:
        self.session, self.accelerator, self.run = session, accelerator, run
        self.recipe = session.recipe
        self.training_step = sharded_step.build_step(session, accelerator, self.log)
        self.metadata = adapters.pack_metadata(session.adapter_metadata())
        self.run_hash = ""
        self.stop_signal, self.stopped_at = 0, 0.0
        self.monitoring = False
        self.unlogged_seconds, self.logged_at = 0.0, 0.0
        self.smoothed_loss: float | None = None

    @property
    def state(self) -> TrainerState:
        """The step reached, and what else a checkpoint stores of it."""
        return self.training_step.state

    @property
    def is_main_process(self) -> bool:
        """True in the process that writes."""
        return bool(self.accelerator.is_main_process)

    def log(self, text: str) -> None:
        """Print and log a line in the main process."""
        if self.is_main_process:
            self.run.log(text)

    # checkpoints and results

    def resume(self, changes: SessionChanges | None = None) -> None:
        """Load the newest valid checkpoint, and record the changes that this session makes.

        A run starts at step 0 only if it never had a checkpoint.
        """
        record = self.run.record()
        latest = checkpoint.latest_valid_checkpoint(
            self.run.path, run_identity.known_run_hashes(record), saved_step=record.get("checkpoint_step")
        )
        for problem in latest.problems:
            self.log(f"{problem}; falling back to the one before")
        if (saved := latest.checkpoint) is not None:
            step = self.training_step
            step.load_adapter(saved.adapter, f"checkpoint of step {saved.step}")
            step.load_optimizer(saved.optimizer)
            step.restore_state(saved.step, saved.state)
            # another number of processes may divide the batch in another way
            self.state.micro_batch_size = min(self.state.micro_batch_size, self.recipe.train.batch_size)
            self.log(f"resuming from step {saved.step}")
        if self.is_main_process:
            self.run.rewind_metrics(self.state.step)
            if changes:
                changes.record(self.run, self.state.step)
            self.run_hash = run_identity.run_hash(self.run.record())

    def save_checkpoint(self) -> None:
        """Write the whole state."""
        if not self.is_main_process:
            return
        step = self.training_step
        saved = checkpoint.Checkpoint(
            step=self.state.step,
            adapter=step.adapter_tensors(),
            optimizer=step.optimizer_tensors(),
            state=self.state.to_json(),
            run_hash=self.run_hash,
        )
        checkpoint.save_checkpoint(self.run.path, saved, self.metadata)
        self.run.update_record(checkpoint_step=self.state.step)
        keep = self.recipe.train.keep_optimizer_states
        if removed := checkpoint.remove_optimizer_states(self.run.path, keep):
            steps = ", ".join(map(str, removed))
            self.log(f"optimizer state of step {steps} removed (train.keep_optimizer_states); adapter kept")

    def save_results(self) -> None:
        """Write the finished adapter, its exports and the training report."""
        if not self.is_main_process:
            return
        tensors = self.training_step.adapter_tensors()
        metadata = adapters.pack_metadata(self.session.adapter_metadata() | {"step": self.state.step})
        run_results.forget_results(self.run)
        adapter = storage.write_safetensors(self.run.adapter_file, tensors, metadata)
        exports, consumers = self._export(adapter)
        sample_sheet.refresh_contact_sheet(self.run.path)
        report = training_report.write_training_report(self.run, self.recipe, "done")
        storage.fsync_file(self.run.metrics_file)
        # last: a crash before repeats all this
        run_results.record_results(self.run, self.state.step, [adapter, *exports, report], consumers)

    def _export(self, file: Path) -> tuple[list[Path], list[str]]:
        """Export the adapter for each consumer that the recipe names; return the files and all consumers."""
        source = AdapterSource(file, run=self.run.path, step=self.state.step, is_last=True)
        folder, base = self.run.path / "exports", self.session.base_folder
        exports = export_source(source, self.recipe.export, folder, base=base)
        served = {*self.recipe.export, *(name for exported in exports for name in exported.consumers)}
        return [exported.path for exported in exports], sorted(served)

    # the loop

    def fit(self) -> None:
        """Train to the last step, with checkpoints, samples and validation on the way."""
        config = self.recipe.tracker_config if self.is_main_process else TrackerConfig(name="none")
        with trackers.TrackerProcess(config, self.run.path, self.log) as tracker:
            self._train_steps(tracker)
            self.save_results()

    def _train_steps(self, tracker: trackers.TrackerProcess) -> None:
        monitor_class = TrainingMonitor if self.is_main_process else sharded_step.SilentMonitor
        monitor = monitor_class(
            self.session, self.run, self.training_step.loss, self.training_step.averages.applied
        )
        self._run_monitor(monitor)
        tracker.report(self.state.step)
        total_steps = self.recipe.train.steps
        quiet = not self.is_main_process
        with (
            Progress("train", total_steps, start=self.state.step, quiet=quiet) as progress,
            contextlib.closing(self.training_step.loss.prefetcher),
        ):
            while self.state.step < total_steps:
                start = time.monotonic()
                try:
                    self.training_step.run()
                except LorakitError:
                    self.log_results(progress, wait=True)
                    raise
                self.unlogged_seconds += time.monotonic() - start
                try:
                    self._after_step(monitor, progress)
                finally:
                    tracker.report(self.state.step)

    def log_results(self, progress: Progress, *, wait: bool) -> None:
        """Log the steps whose numbers have arrived from the device, some at a time; `wait` logs all."""
        start = time.monotonic()
        if wait or start - self.logged_at >= LOG_SECONDS:
            self.logged_at = start
            for result in self.training_step.read_results(wait=wait):
                self.unlogged_seconds += time.monotonic() - start
                # an equal share of each step
                seconds = self.unlogged_seconds / (self.state.step - result.step)
                self.unlogged_seconds -= seconds
                self.log_step(result, seconds)
                self.smoothed_loss = smoothed(self.smoothed_loss, result.loss)
                start = time.monotonic()
        loss = "" if self.smoothed_loss is None else f"loss {self.smoothed_loss:.4f}"
        progress.update(self.state.step, loss)

    def log_step(self, result: StepResult, seconds: float) -> None:
        """Append a finished step's row to metrics.jsonl; numbers that are not finite are null."""
        if not self.is_main_process:
            return
        values = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            **result.learning_rates,
            "step_seconds": round(seconds, 4),
        }
        if result.loss_scale is not None:
            values["loss_scale"] = result.loss_scale
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        storage.append_jsonl(self.run.metrics_file, {"step": result.step + 1, **row})

    def _after_step(self, monitor: TrainingMonitor, progress: Progress) -> None:
        """Save a checkpoint if one is due, then stop if asked to, else sample and validate."""
        step, stop = self.state.step, self._agreed_stop_signal()
        saves = step % self.recipe.train.save_every == 0 or step == self.recipe.train.steps or stop
        self.log_results(progress, wait=bool(saves or monitor.is_due(step)))
        if saves:
            self.save_checkpoint()
        if stop:
            raise Interrupted(f"stopped after step {step}, which is saved", signal_number=stop)
        try:
            self._run_monitor(monitor)
        except Interrupted:
            self.save_checkpoint()
            raise

    def _run_monitor(self, monitor: TrainingMonitor) -> None:
        """Sample and validate; this changes no state, so a signal may stop it at once."""
        if not (self.is_main_process or sharding.is_sharded(self.session.denoiser)):
            return
        self.monitoring = True
        try:
            monitor.run_if_due(self.state.step)
        finally:
            self.monitoring = False

    # signals

    def _agreed_stop_signal(self) -> int:
        """The signal that any process has received, the same in all of them; 0 for none."""
        if self.accelerator.num_processes == 1:
            return self.stop_signal
        received = torch.tensor([self.stop_signal], device=self.accelerator.device)
        with collective(self.accelerator, self.state.step):
            return int(self.accelerator.gather(received).max())

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """First signal: finish the step, save a checkpoint, stop. Second: stop at once.

        A service manager sends a signal to every process, so that it comes twice, from the command too.
        """
        now = time.monotonic()
        if self.stop_signal:
            if now - self.stopped_at > SAME_SIGNAL_SECONDS:
                os._exit(128 + number)
            return
        self.stop_signal, self.stopped_at = number, now
        if self.monitoring:
            message = f"stopped after step {self.state.step}, which is saved"
            raise Interrupted(message, signal_number=number)


def smoothed(average: float | None, loss: float) -> float:
    """Return the moving average of the losses after one more; it starts anew after NaN."""
    return loss if average is None or math.isnan(average) else 0.95 * average + 0.05 * loss
