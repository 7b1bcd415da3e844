"""Samples and validation between the steps of a run.

They come after the checkpoint and change no state: a run with them gives the same adapter as one without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from lorakit.core import storage
from lorakit.core.errors import first_line
from lorakit.data.prompts import Prompt, Sample
from lorakit.data.subjects import Subjects, concept_subjects, replace_triggers
from lorakit.imaging.provenance import SAMPLES_FILE, AdapterUse
from lorakit.models import clip_score, memory
from lorakit.sampling import generate, saved_samples
from lorakit.training import final_loss
from lorakit.training.losses import DenoisingLoss
from lorakit.training.run_folder import RunFolder
from lorakit.training.sample_sheet import step_folder, write_contact_sheet
from lorakit.training.setup import Session
from lorakit.training.validation import ValidationLoss


class TrainingMonitor:
    """Samples images, scores them and measures the validation loss, in the writing process of a run."""

    def __init__(
        self,
        session: Session,
        run: RunFolder,
        loss: DenoisingLoss,
        averaged: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Within `averaged()` the networks have the averaged weights of the adapter, if there are any."""
        self.session, self.run, self._averaged = session, run, averaged
        self.validation_loss = ValidationLoss(loss, session.held_out_set)
        name = session.recipe.samples.clip_model if session.encoded_prompts else None
        # on the CPU, where it takes no memory from training
        self.clip_scorer = clip_score.load_clip_scorer(name, "samples.clip_model") if name else None

    def is_due(self, step: int) -> bool:
        """Return True if it is time to sample or validate."""
        recipe = self.session.recipe
        intervals = (recipe.samples.every, recipe.validate_.every)
        return step == recipe.train.steps or any(step % every == 0 for every in intervals)

    def run_if_due(self, step: int) -> None:
        """Sample and validate if it is due at this step and not done yet."""
        if not self.is_due(step):
            return
        recipe = self.session.recipe
        last = step == recipe.train.steps
        samples, validates = step % recipe.samples.every == 0, step % recipe.validate_.every == 0
        try:
            with self._averaged():
                if samples or last:
                    self._sample(step)
                if validates or last:
                    self._validate(step)
                if last:
                    self._compare_with_base()
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            self.run.log(
                f"step {step}: out of memory while sampling or validating, training continues;"
                f" {first_line(error)}"
            )

    def _sample(self, step: int) -> None:
        session, folder = self.session, step_folder(self.run.path, step)
        if session.encoded_prompts is None or (folder / SAMPLES_FILE).exists():
            return
        samples = generate.sample_images(
            session.family,
            session.pipe,
            session.encode_prompts_now(session.encoded_prompts),
            session.sampling_settings,
        )
        memory.empty_device_cache(session.device)
        self._score_samples(step, samples)
        self._write_samples(step, samples)

    def _write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        session = self.session
        recorder = saved_samples.make_recorder(
            session.recipe.samples.provenance,
            session.family,
            session.pipe,
            session.sampling_settings,
            base=session.recipe.base,
            base_hash=session.input_hashes["base"],
            adapters=[AdapterUse(recipe_hash=session.adapter_metadata()["recipe_hash"], step=step)],
        )
        folder = step_folder(self.run.path, step)
        saved_samples.save_samples(folder, samples, session.family.fps, recorder)
        write_contact_sheet(self.run.path)

    def _score_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Log the CLIP-T of the samples, by the role of their prompts."""
        if self.clip_scorer is None or self._is_logged(step, "clip_t"):
            return
        recipe = self.session.recipe
        subjects = concept_subjects(recipe.concepts)
        texts = [_scoring_text(sample.prompt, subjects) for sample in samples]
        values = self.clip_scorer.clip_t([sample.image for sample in samples], texts)
        scores: dict[str, list[float]] = {}
        for sample, value in zip(samples, values, strict=True):
            role = sample.prompt.role(recipe.triggers)
            scores.setdefault("clip_t" if role == "subject" else f"clip_t_{role}", []).append(float(value))
        self._log_metrics(step, {name: sum(values) / len(values) for name, values in scores.items()})

    def _validate(self, step: int) -> None:
        if self.session.held_out_set.items and not self._is_logged(step, "validation_loss"):
            self._log_metrics(step, {"validation_loss": self.validation_loss.mean()})

    def _compare_with_base(self) -> None:
        """Record the loss with and without the adapter, and say if the adapter is worse."""
        measured = final_loss.measure_final_loss(self.session, self.validation_loss.loss)
        if measured is not None:
            self.run.update_record(final_loss=measured.to_json())
            self.run.log(measured.summary(self.session.recipe.optimizer.lr))

    def _is_logged(self, step: int, metric: str) -> bool:
        return any(metric in row for row in self.run.metrics() if row["step"] == step)

    def _log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        storage.append_jsonl(self.run.metrics_file, {"step": step, **metrics})


def _scoring_text(prompt: Prompt, subjects: Subjects) -> str:
    return (
        prompt.score_text if prompt.score_text != prompt.prompt else replace_triggers(prompt.prompt, subjects)
    )
