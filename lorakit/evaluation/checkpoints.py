"""The variants of a run (its checkpoints at some strengths) and their images, sampled once and reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorakit import adapters
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.data import conditioning, tensor_cache
from lorakit.data.prompts import Prompt
from lorakit.evaluation.sample_files import SampleFile, SampleKey
from lorakit.evaluation.score_table import BASE
from lorakit.models import base_model
from lorakit.sampling import generate
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from lorakit.training import checkpoint
from lorakit.training.run_identity import package_versions

PNG_KEY = "lorakit"  # the PNG text with the hash of everything that the image depends on
_SAMPLING_PACKAGES = ("torch", "diffusers", "transformers", "peft", "lorakit")  # images depend on them


@dataclass(frozen=True)
class CheckpointVariant:
    """One adapter file at one strength."""

    step: int
    file: Path
    strength: float = 1.0

    @property
    def name(self) -> str:
        """The name in reports and files: `step-200`, `step-200@0.7`."""
        return f"step-{self.step}{self._suffix}"

    @property
    def folder(self) -> str:
        """The name of the folder of its images."""
        return f"step-{self.step:08d}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "" if self.strength == 1 else f"@{self.strength:g}"


@dataclass
class RunVariants:
    """The variants of a run, and notes about checkpoints that cannot be used."""

    variants: list[CheckpointVariant]
    notes: list[str] = field(default_factory=list)


def list_variants(
    run: Path, steps: str | Sequence[int] = "all", strengths: Sequence[float] = (1.0,)
) -> RunVariants:
    """List the variants of a run, ordered by step and strength.

    `steps` is "all", "last", steps such as "200,400", or a list of steps. Raises ConfigError for a run
    without an adapter and for a step without a checkpoint.
    """
    files, notes = _adapter_files(run)
    if not files:
        remedy = "use a run that has saved a checkpoint"
        raise ConfigError("the run has no adapter yet", where=str(run), remedy=remedy)
    if steps == "last":
        files = {max(files): files[max(files)]}
    elif steps != "all":
        requested = steps.split(",") if isinstance(steps, str) else [str(step) for step in steps]
        unknown = [step for step in requested if not step.isdigit() or int(step) not in files]
        if unknown:
            remedy = f"all, last, or some of {', '.join(map(str, sorted(files)))}"
            raise ConfigError(f"no checkpoint of step {', '.join(unknown)}", where=str(run), remedy=remedy)
        files = {int(step): files[int(step)] for step in requested}
    variants = [
        CheckpointVariant(step, file, strength)
        for step, file in sorted(files.items())
        for strength in sorted(strengths)
    ]
    return RunVariants(variants, notes)


def _adapter_files(run: Path) -> tuple[dict[int, Path], list[str]]:
    """Return the usable adapter files by step, and a note for each damaged checkpoint."""
    files: dict[int, Path] = {}
    notes = []
    for step in checkpoint.checkpoint_steps(run):
        folder = checkpoint.step_folder(run, step)
        if problem := checksums.find_folder_damage(folder, (checkpoint.ADAPTER_FILE,)):
            notes.append(f"The checkpoint of step {step} is left out: {problem}.")
        else:
            files[step] = folder / checkpoint.ADAPTER_FILE
    final = run / "adapter.safetensors"
    if final.is_file():
        files[int(adapters.read_adapter_metadata(final).get("step", 0))] = final
    return files, notes


class CheckpointSampler:
    """Samples the same prompts with the same noise from the base model and one adapter after another."""

    def __init__(
        self, pipeline: SamplingPipeline, prompts: Sequence[Prompt], options: SamplingOptions, root: Path
    ) -> None:
        self.pipeline, self.prompts, self.options, self.root = pipeline, list(prompts), options, root
        control = options.control
        versions = package_versions()
        self._common_key_parts = {
            "base": base_model.base_hash(pipeline.base_folder),
            "settings": asdict(pipeline.settings(options)) | {"batch_size": None},
            "control": [control.type, control.scale, _folder_hash(control.folder)] if control else None,
            "noise": generate.NOISE_SEED,
            "quantize": pipeline.quantize,
            "device": pipeline.device.type,
            "versions": {name: versions[name] for name in versions if name in _SAMPLING_PACKAGES},
        }

    def sample_base(self) -> list[SampleFile]:
        """Return the base model's images, sampled with the loaded adapter switched off."""
        with self.pipeline.adapter_disabled():
            return self._sample_missing(self.root / BASE, BASE, None, 0.0)

    def sample_variant(self, variant: CheckpointVariant) -> list[SampleFile]:
        """Return the images of one variant."""
        self.pipeline.load_adapter(variant.file, variant.strength)
        adapter_hash = checksums.sha256_file(variant.file)
        return self._sample_missing(self.root / variant.folder, variant.name, adapter_hash, variant.strength)

    def _sample_missing(
        self, folder: Path, label: str, adapter_hash: str | None, strength: float
    ) -> list[SampleFile]:
        """Sample the images that are missing or outdated; each PNG carries the hash of its origin."""
        hashes: dict[SampleKey, str] = {}
        samples: dict[SampleKey, SampleFile] = {}
        is_video = self.pipeline.settings(self.options).num_frames > 1
        for prompt in self.prompts:
            for seed in prompt.seeds:
                path = folder / f"{prompt.id}-{seed}.png"
                sample = SampleFile(prompt, seed, path, path.with_suffix(".webp") if is_video else None)
                hashes[sample.key] = self._sample_hash(prompt, seed, adapter_hash, strength)
                samples[sample.key] = sample
        current = {key for key, sample in samples.items() if _is_current(sample, hashes[key])}
        for batch in self.pipeline.sample_batches(self.prompts, self.options, label, current):
            for image in batch:
                key = SampleKey(image.prompt.id, image.seed)
                if key in current:
                    continue
                generate.save_video(image, samples[key].path, self.pipeline.family.fps)
                storage.save_image(samples[key].path, image.image, pnginfo=_png_text(hashes[key]))
        rows = [
            {"file": s.path.name, "prompt_id": s.prompt.id, "prompt": s.prompt.prompt, "seed": s.seed}
            | ({"video": s.video.name} if s.video else {})
            for s in samples.values()
        ]
        storage.write_json(folder / generate.SAMPLES_FILE, rows)
        return list(samples.values())

    def _sample_hash(self, prompt: Prompt, seed: int, adapter_hash: str | None, strength: float) -> str:
        family = self.pipeline.family
        image = checksums.sha256_file(prompt.images[0]) if prompt.images and self.options.control else None
        parts: dict[str, Any] = {"prompt": prompt.prompt, "negative": prompt.negative, "image": image}
        if family.conditioning.accepted:
            parts["conditioning"] = conditioning.prompt_conditioning(family, prompt, (0, 0)).cache_key
        parts |= {"id": prompt.id, "seed": seed, "adapter": adapter_hash, "strength": strength}
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


def _png_text(sample_hash: str) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PNG_KEY, sample_hash)
    return info


def _folder_hash(folder: Path | None) -> str | None:
    return base_model.base_hash(folder) if folder else None
