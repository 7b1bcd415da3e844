"""Read-only looks at a run between steps: fixed prompts sampled, the loss of held-out images.

They come after the commit and change no state: a run with them gives the same bytes as one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

from lorakit import reports
from lorakit.core import rng, storage
from lorakit.core.errors import first_line
from lorakit.core.progress import track_progress
from lorakit.data import batch_sampler
from lorakit.data.prompts import Prompt, Sample, Subject
from lorakit.imaging.decode import decode_image
from lorakit.models import clip_score, memory
from lorakit.sampling import generate
from lorakit.training import trackers
from lorakit.training.losses import TrainingLoss
from lorakit.training.run_folder import RunFolder
from lorakit.training.setup import Session

NOISE_LEVELS_PER_IMAGE = 4  # noise levels per held-out image, one in each quarter
CONTACT_SHEET_FILE, SHEET_ROWS, SHEET_COLUMNS, SHEET_CELL = "contact.png", 16, 12, 128


class Validator:
    """The looks at one run, in its writing process."""

    def __init__(
        self,
        made: Session,
        run: RunFolder,
        accelerator: Accelerator,
        loss: TrainingLoss,
        remote: trackers.TrackerProcess,
    ) -> None:
        self.made, self.run, self.accelerator, self.loss, self.remote = made, run, accelerator, loss, remote
        name = made.recipe.samples.clip if made.encoded else None
        # on the CPU, where it takes no memory from training
        self.clip = clip_score.load_clip_scorer(name, "samples.clip") if name else None

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
            self.run.say(f"step {step}: no memory to look, training goes on; {first_line(error)}")

    def _sample(self, step: int) -> None:
        folder = step_folder(self.run.path, step)
        if self.made.encoded is None or (folder / generate.SAMPLES_FILE).exists():
            return
        encoded = self.made.encoded_now()
        assert encoded is not None
        made = generate.sample_images(
            self.made.family,
            self.made.pipe,
            encoded,
            self.made.sampling,
            label=f"samples of step {step}",
            autocast=self.accelerator.autocast(),
        )
        memory.empty_device_cache(self.accelerator.device)
        self._score(step, made)
        files = generate.save_samples(folder, made, self.made.family.fps)
        write_contact_sheet(self.run.path)
        self.remote.images("samples", files, step)

    def _score(self, step: int, shots: Sequence[Sample]) -> None:
        """CLIP-T of the samples, those of the subject and the others apart."""
        if self.clip is None or any("clip_t" in row for row in self.run.metrics() if row["step"] == step):
            return
        recipe = self.made.recipe
        subject = Subject(recipe.trigger, recipe.class_noun)
        texts = [_scoring_text(shot.prompt, subject) for shot in shots]
        scores: dict[str, list[float]] = {}
        for shot, value in zip(shots, self.clip.clip_t([shot.image for shot in shots], texts), strict=True):
            role = shot.prompt.role(recipe.trigger)
            scores.setdefault("clip_t" if role == "subject" else f"clip_t_{role}", []).append(float(value))
        means = {name: sum(values) / len(values) for name, values in scores.items()}
        storage.append_jsonl(self.run.metrics_file, {"step": step, **means})
        self.remote.log(means, step)

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
            for image in track_progress(range(len(data.items)), "validation", len(data.items)):
                for part in range(NOISE_LEVELS_PER_IMAGE):
                    position = image * NOISE_LEVELS_PER_IMAGE + part
                    slot = batch_sampler.SampleIndex(position, image, 0)
                    time = (part + rng.keyed_uniform(0, "validation time", position)) / NOISE_LEVELS_PER_IMAGE
                    losses.append(float(self.loss(data, [slot], "validation", [time])[0]))
        return sum(losses) / len(losses)


def _scoring_text(prompt: Prompt, subject: Subject) -> str:
    return prompt.score_text if prompt.score_text != prompt.prompt else subject.plain(prompt.prompt)


def step_folder(run: Path, step: int) -> Path:
    """Where the samples of a step lie."""
    return run / "samples" / f"step-{step:08d}"


def sampled_step_folders(run: Path, most: int) -> list[Path]:
    """At most `most` folders of sampled steps, the first and the last among them."""
    folders = sorted(folder.parent for folder in (run / "samples").glob(f"step-*/{generate.SAMPLES_FILE}"))
    keep = {round(i * (len(folders) - 1) / (most - 1)) for i in range(most)}
    return [folder for i, folder in enumerate(folders) if i in keep]


def write_contact_sheet(run: Path) -> Path:
    """RUN/samples/contact.png: prompts and seeds down, sampled steps across; it grows as training goes on."""
    folders = sampled_step_folders(run, SHEET_COLUMNS)
    rows = storage.read_json(folders[-1] / generate.SAMPLES_FILE)[:SHEET_ROWS]
    cells = [[_open_if_exists(folder / row["file"]) for folder in folders] for row in rows]
    sheet = reports.contact_sheet(
        cells,
        column_heads=[f"step {int(folder.name.removeprefix('step-'))}" for folder in folders],
        row_heads=[row["prompt"] for row in rows],
        cell=SHEET_CELL,
    )
    return storage.save_image(run / "samples" / CONTACT_SHEET_FILE, sheet)


def refresh_contact_sheet(run: Path) -> None:
    """The contact sheet again, where there are samples: a crash may have come between them and it."""
    if sampled_step_folders(run, SHEET_COLUMNS):
        write_contact_sheet(run)


def _open_if_exists(file: Path) -> Image.Image | None:
    return decode_image(file) if file.exists() else None
