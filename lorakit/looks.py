"""Read-only looks at a run between steps: fixed prompts sampled, the loss of held-out images.

They come after the commit and change no state: a run with them gives the same bytes as one without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from lorakit import batches, keyed, memory, sample, storage, tracker
from lorakit.progress import track
from lorakit.rundir import RunFolder
from lorakit.session import Session

Loss = Callable[[Any, list[batches.Slot], str, list[float]], torch.Tensor]
"""(data, slots of one shape, purpose of the noise, uniform times) -> losses (B,); the trainer's own."""
VALIDATION_TIMES = 4  # noise levels per held-out image, one in each quarter


class Looks:
    """The looks at one run, in its writing process."""

    def __init__(
        self, made: Session, run: RunFolder, accelerator: Accelerator, loss: Loss, remote: tracker.Guarded
    ) -> None:
        self.made, self.run, self.accelerator, self.loss, self.remote = made, run, accelerator, loss, remote

    def look(self, step: int) -> None:
        """Sample and validate when the step is due for it and has not been looked at."""
        recipe = self.made.recipe
        last = step == recipe.train.steps
        try:
            if step % recipe.samples.every == 0 or last:
                self._sample(step)
            if step % recipe.validate_.every == 0 or last:
                self._validate(step)
        except torch.OutOfMemoryError as error:
            self.run.say(f"step {step}: no memory to look, training goes on; {memory.first_line(error)}")

    def _sample(self, step: int) -> None:
        folder = self.run.path / "samples" / f"step-{step:08d}"
        if self.made.encoded is None or (folder / sample.INDEX).exists():
            return
        made = sample.sample(
            self.made.family,
            self.made.pipe,
            self.made.encoded,
            self.made.sampling,
            label=f"samples of step {step}",
            autocast=self.accelerator.autocast(),
        )
        memory.release(self.accelerator.device)
        self.remote.images("samples", sample.save(folder, made), step)

    def _validate(self, step: int) -> None:
        known = any("validation_loss" in row for row in self.run.metrics() if row["step"] == step)
        if known or not self.made.held_out.items:
            return
        value = self.validate()
        storage.append_jsonl(self.run.metrics_file, {"step": step, "validation_loss": value})
        self.remote.log({"validation_loss": value}, step)

    def validate(self) -> float:
        """Mean loss of the held-out images at fixed noise and stratified noise levels."""
        data = self.made.held_out
        losses = []
        with torch.no_grad():
            for image in track(range(len(data.items)), "validation", len(data.items)):
                for part in range(VALIDATION_TIMES):
                    position = image * VALIDATION_TIMES + part
                    slot = batches.Slot(position, image, 0)
                    time = (part + keyed.uniform(0, "validation time", position)) / VALIDATION_TIMES
                    losses.append(float(self.loss(data, [slot], "validation", [time])[0]))
        return sum(losses) / len(losses)
