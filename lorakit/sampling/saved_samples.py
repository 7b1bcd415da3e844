"""Sampled images as files: PNG, and WebP for videos, with the record of what they were generated from.

The mode decides what a file contains beside its pixels: "text" the record of `lorakit.imaging.provenance`,
"c2pa" the record and a signed manifest, "none" nothing. The pixels are the same. With "text" equal runs write
equal files; signatures are always different.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorakit.adapters.sources import AdapterSource
from lorakit.core import checksums, storage
from lorakit.data.prompts import Sample
from lorakit.imaging import content_credentials, signing_identity, video
from lorakit.imaging.provenance import (
    SAMPLES_FILE,
    AdapterUse,
    ImageProvenance,
    png_info,
    webp_options,
)
from lorakit.models import base_model, schedulers
from lorakit.models.families.family import Family

if TYPE_CHECKING:
    from lorakit.sampling.generate import SamplingSettings

ProvenanceMode = Literal["text", "c2pa", "none"]


@dataclass(frozen=True)
class SampleRecorder:
    """The settings, sampler, base model and adapters that all images of a pipeline have in common."""

    settings: SamplingSettings
    sampler: str
    guidance_scale: float | None
    """The pipeline's default, where the settings have none; None if it is not known."""
    family: str
    base_hash: str
    base: str | None
    adapters: tuple[AdapterUse, ...] = ()
    identity: signing_identity.SigningIdentity | None = field(default=None, repr=False)
    """With an identity the files are signed."""

    def record(self, sample: Sample) -> ImageProvenance:
        """Return the record of a sample."""
        own = self.settings.for_prompt(sample.prompt)
        image = sample.frames[0] if sample.frames else sample.image
        scale = self.guidance_scale if own.guidance_scale is None else own.guidance_scale
        return ImageProvenance(
            prompt=sample.prompt.prompt,
            negative=sample.prompt.negative or "",
            seed=sample.seed,
            num_inference_steps=own.num_inference_steps,
            guidance_scale=scale,
            width=image.width,
            height=image.height,
            sampler=self.sampler,
            family=self.family,
            base_hash=self.base_hash,
            base=self.base,
            adapters=self.adapters,
            num_frames=max(1, len(sample.frames)),
        )


def make_recorder(
    mode: ProvenanceMode,
    family: Family,
    pipe: Any,
    settings: SamplingSettings,
    *,
    base: str,
    base_hash: str | None = None,
    adapters: Sequence[AdapterUse] = (),
) -> SampleRecorder | None:
    """Return the recorder of a pipeline; None for the mode "none".

    `base` is the base model as it was asked for; without a `base_hash` it is read and hashed, once for each
    base model. Raises ConfigError if "c2pa" lacks its extra or its certificate.
    """
    if mode == "none":
        return None
    if mode == "c2pa":
        content_credentials.import_c2pa()
    return SampleRecorder(
        settings,
        schedulers.infotext_name(pipe, family.objective, settings.sampler),
        _known_guidance(family, pipe, settings.guidance_scale),
        family.name,
        base_hash or base_model.base_hash(base_model.resolve_base(base)),
        base_model.public_name(base),
        tuple(adapters),
        signing_identity.load_identity() if mode == "c2pa" else None,
    )


def check_mode(mode: ProvenanceMode) -> None:
    """Raise ConfigError if a mode cannot be used here, before anything is sampled."""
    if mode == "c2pa":
        content_credentials.import_c2pa()
        signing_identity.load_identity()


def adapter_uses(sources: Sequence[AdapterSource]) -> tuple[AdapterUse, ...]:
    """Return the adapters of a pipeline with the hashes of their files."""
    return tuple(
        AdapterUse(checksums.sha256_file(source.weights_file), source.strength, step=source.step)
        for source in sources
    )


def _known_guidance(family: Family, pipe: Any, guidance_scale: float | None) -> float | None:
    try:
        scale = family.resolve_guidance(pipe, guidance_scale)
    except (AttributeError, KeyError):  # a pipeline that keeps its guidance elsewhere
        return None
    return float(scale) if isinstance(scale, int | float) else None


def save_sample(
    file: Path,
    sample: Sample,
    fps: float,
    recorder: SampleRecorder | None,
    texts: Mapping[str, str] | None = None,
) -> Path | None:
    """Write a sample's image, and the video of its frames beside it before; returns the video's path.

    `texts` are further texts of the PNG.
    """
    record = recorder.record(sample) if recorder else None
    video_file = None
    if sample.frames:
        data = video.encode_webp(sample.frames, fps, **webp_options(record))
        video_file = file.with_suffix(".webp")
        storage.write_bytes(video_file, _signed(data, "image/webp", recorder, record))
    buffer = io.BytesIO()
    sample.image.save(buffer, "PNG", pnginfo=png_info(record, texts))
    storage.write_bytes(file, _signed(buffer.getvalue(), "image/png", recorder, record))
    return video_file


def _signed(
    data: bytes, mime_type: str, recorder: SampleRecorder | None, record: ImageProvenance | None
) -> bytes:
    if recorder is None or record is None or recorder.identity is None:
        return data
    return content_credentials.sign_image(data, mime_type, record, recorder.identity)


def save_samples(
    folder: Path, samples: Sequence[Sample], fps: float = 0.0, recorder: SampleRecorder | None = None
) -> list[Path]:
    """Write images as <prompt id>-<seed>.png, videos beside them as .webp, and their list samples.json.

    `fps` is the frame rate of the videos. Returns the paths of the images.
    """
    files, rows = [], []
    for sample in samples:
        file = folder / f"{sample.prompt.id}-{sample.seed}.png"
        video_file = save_sample(file, sample, fps, recorder)
        row = {
            "file": file.name,
            "prompt_id": sample.prompt.id,
            "prompt": sample.prompt.prompt,
            "seed": sample.seed,
        }
        files.append(file)
        rows.append(row | ({"video": video_file.name} if video_file else {}))
    storage.write_json(folder / SAMPLES_FILE, rows)
    return files
