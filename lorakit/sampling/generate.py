"""Pictures from prompts, through the base's own diffusers pipeline, with keyed noise.

The noise depends on (prompt id, seed) alone: the base, every checkpoint and every batch size start from the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorakit.core import rng, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import Progress
from lorakit.data import conditioning
from lorakit.data.prompts import Prompt, Sample
from lorakit.imaging import decode, video
from lorakit.models import memory, schedulers
from lorakit.models.families.family import Conditioning, Family
from lorakit.models.families.video import VideoFamily
from lorakit.sampling.controls import ControlledPipeline

SAMPLES_FILE = "samples.json"  # written last: where it is, the pictures are complete
NOISE_SEED = (
    20_240_229  # of all sampling noise; a fixed number, so that runs with other training seeds compare
)


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample; None for `guidance` and `sampler` (a name of `samplers`) means the base's own."""

    width: int
    height: int
    steps: int = 20
    guidance: float | None = None
    batch: int = 8
    sampler: str | None = None
    frames: int = 1


@dataclass(frozen=True)
class EncodedPrompts:
    """Text conditions of prompts and of their negatives, computed once while the text encoders are at
    hand."""

    prompts: list[Prompt]
    positive: list[Conditioning]
    negative: list[Conditioning]


def encode_prompts(
    family: Family, pipe: Any, prompts: Sequence[Prompt], size: tuple[int, int] | None = None
) -> EncodedPrompts:
    """Encode all prompts with the pipeline's text encoders; with them go the pictures they come with."""
    positive, negative = [], []
    known: dict[tuple[str, str], Conditioning] = {}
    for prompt in prompts:
        seen = conditioning.prompt_conditioning(family, prompt, size or (0, 0))
        pictures, against = seen.read(), prompt.negative or ""
        key = against, seen.key if family.reads else ""
        with torch.no_grad():
            if key not in known:
                known[key] = family.encode(pipe, [against], size, pictures)[0]
            positive.append({**family.encode(pipe, [prompt.prompt], size, pictures)[0], **pictures})
        negative.append(known[key])
    return EncodedPrompts(list(prompts), positive, negative)


def sample_images(
    family: Family,
    pipe: Any,
    encoded: EncodedPrompts,
    settings: SamplingSettings,
    *,
    label: str = "samples",
    quiet: bool = False,
    autocast: AbstractContextManager[Any] | None = None,
) -> list[Sample]:
    """One picture for every seed of every prompt, in order."""
    with autocast or nullcontext():
        batches = sample_batches(family, pipe, encoded, settings, label=label, quiet=quiet)
        return [shot for batch in batches for shot in batch]


def sample_batches(
    family: Family,
    pipe: Any,
    encoded: EncodedPrompts,
    settings: SamplingSettings,
    *,
    done: Collection[tuple[str, int]] = (),
    guided: ControlledPipeline | None = None,
    label: str = "samples",
    quiet: bool = False,
) -> Iterator[list[Sample]]:
    """The pictures of all seeds of all prompts, batch by batch.

    A batch whose (prompt id, seed) are all in `done` is left out. Others are drawn whole, so that a picture
    has the same neighbours, and the same bytes, as it would have had without the interruption; where memory
    is short of that, in halves of it from then on.
    """
    jobs = [(i, seed) for i, prompt in enumerate(encoded.prompts) for seed in prompt.seeds]
    size = 1 if guided and guided.alone else settings.batch
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    batches = [some for some in batches if any((encoded.prompts[i].id, seed) not in done for i, seed in some)]
    denoiser = family.denoiser(pipe)
    training = denoiser.training
    denoiser.eval()
    used = guided.pipe if guided else pipe
    try:
        with (
            schedulers.use_sampler(used, family.objective, settings.sampler),
            Progress(label, sum(map(len, batches)), quiet=quiet) as progress,
        ):
            for some in batches:
                drawn: list[Any] = []
                while part := some[len(drawn) : len(drawn) + size]:
                    if guided:
                        guides = [_control_image(encoded.prompts[i]) for i, _ in part]
                        guided.show(
                            [decode.decode_image(path) for path in guides], settings.width, settings.height
                        )
                    made = _sample_if_memory(family, used, encoded, settings, part)
                    size = len(part) // 2 if made is None else size
                    drawn += made or []
                yield [_to_sample(encoded.prompts[i], s, p) for (i, s), p in zip(some, drawn, strict=True)]
                progress.update(progress.done + len(some))
    finally:
        denoiser.train(training)


def _sample_if_memory(
    family: Family,
    pipe: Any,
    encoded: EncodedPrompts,
    settings: SamplingSettings,
    jobs: Sequence[tuple[int, int]],
) -> list[Any] | None:
    """`_batch`; None where there is no memory for so many at once, but perhaps for fewer."""
    try:
        return _sample_batch(family, pipe, encoded, settings, jobs)
    except torch.OutOfMemoryError:
        if len(jobs) == 1:
            raise
    memory.empty_device_cache(_device(family, pipe))  # out of the handler, which holds what was computed
    return None


def _to_sample(prompt: Prompt, seed: int, drawn: Any) -> Sample:
    """Of a picture, or of a list of frames."""
    film = tuple(drawn) if isinstance(drawn, list) else ()
    return Sample(prompt, seed, video.frame_strip(film) if film else drawn, film)


@torch.no_grad()
def _sample_batch(
    family: Family,
    pipe: Any,
    encoded: EncodedPrompts,
    settings: SamplingSettings,
    jobs: Sequence[tuple[int, int]],
) -> list[Any]:
    """The pictures, or clips as lists of frames, of (index of the prompt, seed)."""
    device = _device(family, pipe)
    made: Callable[..., list[Any]] = family.sample
    shape = family.latent_shape(pipe, settings.width, settings.height)
    if isinstance(family, VideoFamily) and settings.frames > 1:
        made, shape = (
            family.films,
            family.latent_shape(pipe, settings.width, settings.height, settings.frames),
        )
    noise = [rng.keyed_normal(shape, NOISE_SEED, "sample", encoded.prompts[i].id, seed) for i, seed in jobs]
    return made(
        pipe,
        _to_device(device, family.collate([encoded.positive[i] for i, _ in jobs])),
        _to_device(device, family.collate([encoded.negative[i] for i, _ in jobs])),
        torch.stack(noise).to(device),
        steps=settings.steps,
        guidance=settings.guidance,
        width=settings.width,
        height=settings.height,
    )


def _control_image(prompt: Prompt) -> Path:
    if prompt.image is None:
        raise ConfigError(
            "the prompt has no image to be guided by",
            where=f"prompt {prompt.id!r}",
            remedy="give each prompt an `image`: a path relative to the prompt file",
        )
    return prompt.image


def _device(family: Family, pipe: Any) -> torch.device:
    return next(family.denoiser(pipe).parameters()).device


def _to_device(device: torch.device, cond: Conditioning) -> Conditioning:
    return {name: tensor.to(device) for name, tensor in cond.items()}


def save_samples(folder: Path, samples: Sequence[Sample], fps: float = 0.0) -> list[Path]:
    """Write pictures as <prompt id>-<seed>.png, clips beside them as .webp that play at `fps`, and
    samples.json, which tells what each one is."""
    files = [storage.save_image(folder / f"{s.prompt.id}-{s.seed}.png", s.image) for s in samples]
    rows = [
        {"file": file.name, "prompt_id": s.prompt.id, "prompt": s.prompt.prompt, "seed": s.seed}
        for file, s in zip(files, samples, strict=True)
    ]
    for row, shot, file in zip(rows, samples, files, strict=True):
        if film := save_video(shot, file, fps):
            row["clip"] = film.name
    storage.write_json(folder / SAMPLES_FILE, rows)
    return files


def save_video(shot: Sample, picture: Path, fps: float) -> Path | None:
    """Write a shot's frames, if it has any, beside its picture as .webp that plays at `fps`."""
    if not shot.frames:
        return None
    return storage.write_bytes(picture.with_suffix(".webp"), video.encode_webp(shot.frames, fps))
