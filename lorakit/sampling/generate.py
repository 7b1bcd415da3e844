"""Sampling with the base model's own diffusers pipeline and keyed noise.

The noise depends on prompt id and seed only: the base model and every checkpoint start from the same noise,
whatever the batch size.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit.core import rng
from lorakit.core.errors import ConfigError
from lorakit.core.progress import Progress
from lorakit.data import conditioning
from lorakit.data.prompts import Prompt, Sample
from lorakit.imaging import decode, video
from lorakit.models import memory, non_finite, schedulers, vae
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.video import VideoFamily
from lorakit.sampling.controls import ControlledPipeline

NOISE_SEED = 20_240_229  # of all sampling noise, fixed: runs with different training seeds compare


@dataclass(frozen=True)
class SamplingSettings:
    """Complete sampling settings; None: the default of the pipeline's call, or its own scheduler.

    `sampler` is a name of `schedulers`.
    """

    width: int
    height: int
    num_inference_steps: int = 20
    guidance_scale: float | None = None
    batch_size: int = 8
    sampler: str | None = None
    num_frames: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """The (width, height) of the images."""
        return self.width, self.height

    def for_prompt(self, prompt: Prompt) -> SamplingSettings:
        """Return the settings of a prompt, whose own come first; its size is one of `resolve_sizes`."""
        own = {
            name: value
            for name in ("width", "height", "num_inference_steps", "guidance_scale")
            if (value := getattr(prompt, name)) is not None
        }
        return replace(self, **own) if own else self


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts with their text embeddings and conditioning images, and those of their negative prompts."""

    prompts: list[Prompt]
    positive: list[Conditioning]
    negative: list[Conditioning]

    def is_finite(self, number: int) -> bool:
        """Return True if the embeddings of a prompt, counted from 0, contain no NaN or infinity."""
        return non_finite.all_finite([*self.positive[number].values(), *self.negative[number].values()])


@dataclass(frozen=True)
class _Job:
    """One image to sample: the index of its prompt, and its seed."""

    prompt_index: int
    seed: int


def encode_prompts(
    family: Family, pipe: Any, prompts: Sequence[Prompt], settings: SamplingSettings
) -> EncodedPrompts:
    """Encode all prompts with the pipeline's text encoders, and load their conditioning images."""
    positive, negative = [], []
    negative_by_key: dict[tuple[Any, ...], Conditioning] = {}
    for prompt in prompts:
        size = settings.for_prompt(prompt).size
        inputs = conditioning.prompt_conditioning(family, prompt, size)
        images, negative_prompt = inputs.load_tensors(), prompt.negative or ""
        key = negative_prompt, size, inputs.cache_key if family.conditioning.read_by_text_encoder else ""
        if key not in negative_by_key:
            negative_by_key[key] = family.encode_text(pipe, [negative_prompt], size, images)[0]
        positive.append({**family.encode_text(pipe, [prompt.prompt], size, images)[0], **images})
        negative.append(negative_by_key[key])
    return EncodedPrompts(list(prompts), positive, negative)


def sample_images(
    family: Family,
    pipe: Any,
    encoded: EncodedPrompts,
    settings: SamplingSettings,
    *,
    label: str = "samples",
    quiet: bool = False,
) -> list[Sample]:
    """Sample one image for every seed of every prompt, in order."""
    batches = sample_batches(family, pipe, encoded, settings, label=label, quiet=quiet)
    return [sample for batch in batches for sample in batch]


def sample_batches(
    family: Family,
    pipe: Any,
    encoded: EncodedPrompts,
    settings: SamplingSettings,
    *,
    completed: Collection[tuple[str, int]] = (),
    controlled: ControlledPipeline | None = None,
    label: str = "samples",
    quiet: bool = False,
) -> Iterator[list[Sample]]:
    """Sample every seed of every prompt, batch by batch.

    A batch whose (prompt id, seed) are all in `completed` is skipped. The others are sampled as a whole, so
    that an image has the same neighbours, and the same bytes, as without an interruption. If memory runs out,
    all further batches are split into halves. The images of a batch have one size, steps and guidance.
    """
    size = 1 if controlled and controlled.one_image_per_call else settings.batch_size
    batches = [
        batch
        for batch in _batches(encoded.prompts, settings, size)
        if any((encoded.prompts[job.prompt_index].id, job.seed) not in completed for job in batch)
    ]
    denoiser = family.denoiser(pipe)
    training = denoiser.training
    denoiser.eval()
    sampling_pipe = controlled.pipe if controlled else pipe
    try:
        with (
            schedulers.use_sampler(sampling_pipe, family.objective, settings.sampler),
            Progress(label, sum(map(len, batches)), quiet=quiet) as progress,
        ):
            for batch in batches:
                own = settings.for_prompt(encoded.prompts[batch[0].prompt_index])
                outputs: list[Any] = []
                while part := batch[len(outputs) : len(outputs) + size]:
                    if controlled:
                        files = [_control_image(encoded.prompts[job.prompt_index]) for job in part]
                        images = [decode.decode_image(file) for file in files]
                        controlled.set_images(images, own.width, own.height)
                    sampled = _sample_unless_out_of_memory(family, sampling_pipe, encoded, own, part)
                    size = len(part) // 2 if sampled is None else size
                    outputs += sampled or []
                yield [
                    _to_sample(encoded.prompts[job.prompt_index], job.seed, output)
                    for job, output in zip(batch, outputs, strict=True)
                ]
                progress.update(progress.done + len(batch))
    finally:
        denoiser.train(training)


def _batches(prompts: Sequence[Prompt], settings: SamplingSettings, size: int) -> Iterator[list[_Job]]:
    """Yield batches of at most `size` images; a prompt with other settings than the last starts a new one."""
    rows = ((settings.for_prompt(prompt), index) for index, prompt in enumerate(prompts))
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        jobs = [_Job(index, seed) for _, index in group for seed in prompts[index].seeds]
        for start in range(0, len(jobs), size):
            yield jobs[start : start + size]


def _sample_unless_out_of_memory(
    family: Family, pipe: Any, encoded: EncodedPrompts, settings: SamplingSettings, jobs: Sequence[_Job]
) -> list[Any] | None:
    """Call `_sample_batch`; return None if memory ran out and there is more than one image to sample."""
    try:
        return _sample_batch(family, pipe, encoded, settings, jobs)
    except (RuntimeError, MemoryError) as error:
        if len(jobs) == 1 or not memory.is_out_of_memory(error):
            raise
    memory.empty_device_cache(_device(family, pipe))  # outside the handler, which holds the tensors
    return None


def _to_sample(prompt: Prompt, seed: int, output: Any) -> Sample:
    """Make a sample of an image, or of a video's list of frames."""
    frames = tuple(output) if isinstance(output, list) else ()
    return Sample(prompt, seed, video.frame_strip(frames) if frames else output, frames)


@torch.no_grad()
def _sample_batch(
    family: Family, pipe: Any, encoded: EncodedPrompts, settings: SamplingSettings, jobs: Sequence[_Job]
) -> list[Any]:
    """Sample images, or videos as lists of frames."""
    device = _device(family, pipe)
    sample: Callable[..., list[Any]] = family.sample
    shape = family.latent_shape(pipe, settings.width, settings.height)
    if isinstance(family, VideoFamily) and settings.num_frames > 1:
        sample = family.sample_videos
        shape = family.latent_shape(pipe, settings.width, settings.height, settings.num_frames)
    noise = [
        rng.keyed_normal(shape, NOISE_SEED, "sample", encoded.prompts[job.prompt_index].id, job.seed)
        for job in jobs
    ]
    with vae.watch_decoded_latents(getattr(pipe, "vae", None)) as black:
        outputs = sample(
            pipe,
            _to_device(device, family.collate([encoded.positive[job.prompt_index] for job in jobs])),
            _to_device(device, family.collate([encoded.negative[job.prompt_index] for job in jobs])),
            torch.stack(noise).to(device),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            width=settings.width,
            height=settings.height,
        )
    if black:
        names = ", ".join(f"{encoded.prompts[job.prompt_index].id}-{job.seed}" for job in jobs)
        warnings.warn(
            f"the denoiser returned NaN or infinity, some of these samples are black: {names}", stacklevel=2
        )
    return outputs


def _control_image(prompt: Prompt) -> Path:
    if not prompt.images:
        raise ConfigError(
            "the prompt has no image for the control",
            where=f"prompt {prompt.id!r}",
            remedy="give each prompt an `image`: a path relative to the prompt file",
        )
    return prompt.images[0]


def _device(family: Family, pipe: Any) -> torch.device:
    return next(family.denoiser(pipe).parameters()).device


def _to_device(device: torch.device, cond: Conditioning) -> Conditioning:
    return {name: tensor.to(device) for name, tensor in cond.items()}
