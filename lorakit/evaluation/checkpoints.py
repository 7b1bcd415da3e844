"""The arms of a run: its checkpoints and strengths, and their pictures, drawn once and kept by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorakit import adapters
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data import conditioning, tensor_cache
from lorakit.data.prompts import Prompt
from lorakit.evaluation.sample_files import SampleFile
from lorakit.evaluation.score_table import BASE
from lorakit.models import base_model
from lorakit.sampling import generate
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from lorakit.training import checkpoint
from lorakit.training.run_folder import package_versions

PNG_KEY = "lorakit"  # the PNG text that says what a picture was made from
_SAMPLING_PACKAGES = ("torch", "diffusers", "transformers", "peft", "lorakit")  # what pictures depend on


@dataclass(frozen=True)
class CheckpointVariant:
    """One adapter file at one strength."""

    step: int
    file: Path
    strength: float = 1.0

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"step {self.step}" + ("" if self.strength == 1 else f" × {self.strength:g}")

    @property
    def folder(self) -> str:
        """Where its pictures lie."""
        return f"step-{self.step:08d}" + ("" if self.strength == 1 else f"@{self.strength:g}")


def list_variants(
    run: Path, asked: str = "all", strengths: Sequence[float] = (1.0,)
) -> tuple[list[CheckpointVariant], list[str]]:
    """The arms of a run, and what is wrong with checkpoints that are left out.

    `asked` is "all", "last" or steps such as "200,400". A run without any adapter is a ConfigError.
    """
    files, problems = _adapter_files(run)
    if not files:
        remedy = "give the folder of a run that has saved a checkpoint"
        raise ConfigError("the run has no adapter yet", where=str(run), remedy=remedy)
    if asked == "last":
        files = {max(files): files[max(files)]}
    elif asked != "all":
        steps = asked.split(",")
        unknown = [step for step in steps if not step.isdigit() or int(step) not in files]
        if unknown:
            remedy = f"all, last, or some of {', '.join(map(str, sorted(files)))}"
            raise ConfigError(f"no checkpoint of step {', '.join(unknown)}", where=str(run), remedy=remedy)
        files = {int(step): files[int(step)] for step in steps}
    made = [
        CheckpointVariant(step, file, strength)
        for step, file in sorted(files.items())
        for strength in sorted(strengths)
    ]
    return made, problems


def _adapter_files(run: Path) -> tuple[dict[int, Path], list[str]]:
    files: dict[int, Path] = {}
    problems = []
    for step in checkpoint.checkpoint_steps(run):
        folder = run / checkpoint.FOLDER / f"step-{step:08d}"
        if problem := storage.find_folder_damage(folder, (checkpoint.ADAPTER,)):
            problems.append(f"checkpoint of step {step} is left out: {problem}")
        else:
            files[step] = folder / checkpoint.ADAPTER
    final = run / "adapter.safetensors"
    if final.is_file():
        files[int(adapters.read_adapter_metadata(final).get("steps", 0))] = final
    return files, problems


class CheckpointSampler:
    """Draws the same prompts and noise with one loaded base and each adapter in turn."""

    def __init__(
        self, painter: SamplingPipeline, prompts: Sequence[Prompt], options: SamplingOptions, root: Path
    ) -> None:
        self.painter, self.prompts, self.options, self.root = painter, list(prompts), options, root
        guide = options.guide
        self._about = {
            "base": base_model.base_hash(painter.folder),
            "settings": asdict(painter.settings(options)) | {"batch": None},
            "guide": [guide.kind, guide.scale, _folder_hash(guide.folder)] if guide else None,
            "noise": generate.NOISE_SEED,
            "quantize": painter.quantize,
            "device": painter.device.type,
            "versions": {
                name: value for name, value in package_versions().items() if name in _SAMPLING_PACKAGES
            },
        }

    def base(self) -> list[SampleFile]:
        """The base's pictures, with whatever adapter is loaded switched off."""
        with self.painter.without_adapter():
            return self._draw(self.root / BASE, BASE, None, 0.0)

    def arm(self, arm: CheckpointVariant) -> list[SampleFile]:
        """The pictures of one arm."""
        self.painter.swap(arm.file, arm.strength)
        return self._draw(self.root / arm.folder, arm.name, storage.sha256_file(arm.file), arm.strength)

    def _draw(self, folder: Path, label: str, adapter_hash: str | None, strength: float) -> list[SampleFile]:
        """Draw what is not there yet; each file says by a hash what it was made from."""
        keys: dict[tuple[str, int], str] = {}
        found: dict[tuple[str, int], SampleFile] = {}
        films = self.painter.settings(self.options).frames > 1
        for prompt in self.prompts:
            for seed in prompt.seeds:
                name = prompt.id, seed
                path = folder / f"{prompt.id}-{seed}.png"
                picture = SampleFile(prompt, seed, path, path.with_suffix(".webp") if films else None)
                keys[name] = self._key(prompt, seed, adapter_hash, strength)
                found[name] = picture
        done = {name for name, picture in found.items() if _is_current(picture, keys[name])}
        for batch in self.painter.batches(self.prompts, self.options, label, done):
            for shot in batch:
                name = shot.prompt.id, shot.seed
                if name in done:
                    continue
                generate.save_video(shot, found[name].path, self.painter.family.fps)
                storage.save_image(found[name].path, shot.image, pnginfo=_png_text(keys[name]))
        rows = [
            {"file": p.path.name, "prompt_id": p.prompt.id, "prompt": p.prompt.prompt, "seed": p.seed}
            | ({"clip": p.clip.name} if p.clip else {})
            for p in found.values()
        ]
        storage.write_json(folder / generate.SAMPLES_FILE, rows)
        return list(found.values())

    def _key(self, prompt: Prompt, seed: int, adapter_hash: str | None, strength: float) -> str:
        family = self.painter.family
        image = storage.sha256_file(prompt.image) if prompt.image and self.options.guide else None
        parts: dict[str, Any] = {"prompt": prompt.prompt, "negative": prompt.negative, "image": image}
        if family.takes:
            parts["shown"] = conditioning.prompt_conditioning(family, prompt, (0, 0)).key
        parts |= {"id": prompt.id, "seed": seed, "adapter": adapter_hash, "strength": strength}
        return tensor_cache.cache_key(**parts, **self._about)


def _is_current(picture: SampleFile, key: str) -> bool:
    """Whether a picture is there as it would be drawn; its clip is written before it."""
    return sample_key(picture.path) == key and (picture.clip is None or picture.clip.is_file())


def sample_key(path: Path) -> str | None:
    """The hash that a picture of ours carries; None for a missing, damaged or foreign file."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()  # a file that was cut off is not done
            text = picture.info.get(PNG_KEY)
            return text if isinstance(text, str) else None
    except (OSError, SyntaxError, ValueError):
        return None


def _png_text(key: str) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(PNG_KEY, key)
    return info


def _folder_hash(folder: Path | None) -> str | None:
    return base_model.base_hash(folder) if folder else None
