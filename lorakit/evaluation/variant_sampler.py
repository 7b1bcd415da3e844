"""The images of variants, sampled once and reused: each PNG carries the hash of everything it depends on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakit.core import checksums, storage
from lorakit.data import conditioning, tensor_cache
from lorakit.data.prompts import Prompt
from lorakit.evaluation.sample_files import SampleFile, SampleKey
from lorakit.evaluation.sampling_estimate import SamplingMeter
from lorakit.imaging.provenance import SAMPLES_FILE, AdapterUse
from lorakit.models import base_model
from lorakit.sampling import generate, saved_samples
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from lorakit.training.run_identity import package_versions

PNG_KEY = "lorakit_inputs"  # the PNG text with the hash of everything that the image depends on
_SAMPLING_PACKAGES = ("torch", "diffusers", "transformers", "peft", "lorakit")  # images depend on them


@dataclass(frozen=True)
class SamplingTask:
    """The images of one variant: its folder, its adapter with the strength, and the prompts to sample."""

    name: str
    folder: str
    prompts: Sequence[Prompt]
    adapter_hash: str | None = None
    """None for the base model."""
    strength: float = 0.0


@dataclass(frozen=True)
class _Images:
    """The image files of a task with their hashes, and the keys of those that exist and are current."""

    samples: dict[SampleKey, SampleFile]
    hashes: dict[SampleKey, str]
    current: set[SampleKey]


class VariantSampler:
    """Samples the missing images of variants with one pipeline; the same noise for all of them."""

    def __init__(
        self,
        pipeline: SamplingPipeline,
        options: SamplingOptions,
        root: Path,
        meter: SamplingMeter,
        base: str,
    ) -> None:
        """`base` is the base model as the recipe names it."""
        self.base = base
        self.pipeline, self.options, self.root, self.meter = pipeline, options, root, meter
        control = options.control
        versions = package_versions()
        self._common_key_parts = {
            "base": base_model.base_hash(pipeline.base_folder),
            "control": [control.type, control.scale, _folder_hash(control.folder)] if control else None,
            "noise": generate.NOISE_SEED,
            "quantize": pipeline.quantize,
            "device": pipeline.device.type,
            "versions": {name: versions[name] for name in versions if name in _SAMPLING_PACKAGES},
        }

    def count_missing(self, task: SamplingTask) -> int:
        """Return the number of images of a task that must be sampled."""
        images = self._find_images(task)
        return len(images.samples) - len(images.current)

    def sample(self, task: SamplingTask, listed: Sequence[Prompt] = ()) -> list[SampleFile]:
        """Sample the images that are missing or outdated with the adapter in the pipeline; return all.

        `listed` are the prompts of the folder's list, if those of the task are only a part of them.
        """
        images, recorder = self._find_images(task), self._recorder(task)
        begin = time.monotonic()
        for batch in self.pipeline.sample_batches(task.prompts, self.options, task.name, images.current):
            for image in batch:
                key = SampleKey(image.prompt.id, image.seed)
                if key in images.current:
                    continue
                file = images.samples[key].path
                texts = {PNG_KEY: images.hashes[key]}
                saved_samples.save_sample(file, image, self.pipeline.family.fps, recorder, texts)
            self.meter.add(len(batch), time.monotonic() - begin)
            begin = time.monotonic()
        self._write_list(task, listed or task.prompts)
        return list(images.samples.values())

    def _recorder(self, task: SamplingTask) -> saved_samples.SampleRecorder | None:
        uses = [AdapterUse(task.adapter_hash, task.strength)] if task.adapter_hash else []
        return self.pipeline.make_recorder(self.options, self.base, uses)

    def _find_images(self, task: SamplingTask) -> _Images:
        folder = self.root / task.folder
        is_video = self.pipeline.settings(self.options).num_frames > 1
        hashes: dict[SampleKey, str] = {}
        samples: dict[SampleKey, SampleFile] = {}
        for prompt in task.prompts:
            for seed in prompt.seeds:
                path = folder / f"{prompt.id}-{seed}.png"
                sample = SampleFile(prompt, seed, path, path.with_suffix(".webp") if is_video else None)
                hashes[sample.key] = self._sample_hash(prompt, seed, task)
                samples[sample.key] = sample
        current = {key for key, sample in samples.items() if _is_current(sample, hashes[key])}
        return _Images(samples, hashes, current)

    def _write_list(self, task: SamplingTask, prompts: Sequence[Prompt]) -> None:
        folder = self.root / task.folder
        rows = []
        for prompt in prompts:
            for seed in prompt.seeds:
                file = folder / f"{prompt.id}-{seed}.png"
                row = {"file": file.name, "prompt_id": prompt.id, "prompt": prompt.prompt, "seed": seed}
                video = file.with_suffix(".webp")
                rows.append(row | ({"video": video.name} if video.is_file() else {}))
        storage.write_json(folder / SAMPLES_FILE, rows)

    def _sample_hash(self, prompt: Prompt, seed: int, task: SamplingTask) -> str:
        family = self.pipeline.family
        image = checksums.sha256_file(prompt.images[0]) if prompt.images and self.options.control else None
        parts: dict[str, Any] = {"prompt": prompt.prompt, "negative": prompt.negative, "image": image}
        if family.conditioning.accepted:
            parts["conditioning"] = conditioning.prompt_conditioning(family, prompt, (0, 0)).cache_key
        settings = self.pipeline.settings(self.options)
        (resolved,) = self.pipeline.resolve_sizes([prompt], settings)
        parts["settings"] = asdict(settings.for_prompt(resolved)) | {"batch_size": None}
        parts |= {"id": prompt.id, "seed": seed, "adapter": task.adapter_hash, "strength": task.strength}
        return tensor_cache.cache_key(**parts, **self._common_key_parts)


def _is_current(sample: SampleFile, sample_hash: str) -> bool:
    """Return True if the image exists with this hash; its video is written before it."""
    return read_sample_hash(sample.path) == sample_hash and (sample.video is None or sample.video.is_file())


def read_sample_hash(path: Path) -> str | None:
    """Return the hash that an evaluation wrote into a PNG; None for a missing, damaged or other file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # a truncated file is not complete
            text = image.info.get(PNG_KEY)
            return text if isinstance(text, str) else None
    except (OSError, SyntaxError, ValueError):
        return None


def _folder_hash(folder: Path | None) -> str | None:
    return base_model.base_hash(folder) if folder else None
