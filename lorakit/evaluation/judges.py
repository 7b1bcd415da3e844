"""The models that score, by name, and the reference images that they compare with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit import manifest
from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError, DataError
from lorakit.data.items import DatasetItem, load_training_records
from lorakit.data.prompts import has_word
from lorakit.evaluation.feature_cache import FrameSource, frame_source
from lorakit.evaluation.measure import JudgeModels, ReferenceImages
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from lorakit.evaluation.metrics.image_encoders import DEFAULT_IMAGE_ENCODER, load_image_encoder
from lorakit.evaluation.sample_files import IMAGE_SUFFIXES
from lorakit.imaging import decode
from lorakit.manifest import Record
from lorakit.models import base_model, clip_score
from lorakit.models import device as devices
from lorakit.training import run_plan

DEFAULT_CLIP = "ViT-L-14/openai"
NO_IMAGE_ENCODER = "none"


@dataclass(frozen=True)
class JudgeOptions:
    """Names of the models that score.

    None for `clip_model` and `image_encoder` means the embedded CLIP alone for embedded bases, else
    ViT-L-14/openai and DINOv2. The image encoder "none" uses CLIP's image tower instead.
    """

    clip_model: str | None = None
    image_encoder: str | None = None
    metrics: tuple[str, ...] = ()
    """Further metrics, each NAME or NAME=MODEL."""
    sscd: str | None = None
    """TorchScript file of the copy detector."""
    resize: clip_score.Resize | None = None


DEFAULT_JUDGES = JudgeOptions()


def load_judges(options: JudgeOptions, base: str | None = None) -> JudgeModels:
    """Load the models; ConfigError if one is missing, before any image is sampled."""
    device = devices.default_device().type
    embedded = base is not None and base_model.is_embedded(base)
    clip_name = options.clip_model or (clip_score.EMBEDDED if embedded else DEFAULT_CLIP)
    clip = clip_score.load_clip_scorer(clip_name, "--clip-model", resize=options.resize, device=device)
    embedded = embedded or clip_name == clip_score.EMBEDDED
    encoder_name = options.image_encoder or (NO_IMAGE_ENCODER if embedded else DEFAULT_IMAGE_ENCODER)
    image_encoder = copy_detector = None
    if encoder_name != NO_IMAGE_ENCODER:
        image_encoder = load_image_encoder(encoder_name, resize=options.resize, device=device)
    if options.sscd:
        copy_detector = load_image_encoder(f"sscd:{options.sscd}", device=device)
    scorers = [load_prompt_scorer(text, device) for text in options.metrics]
    return JudgeModels(clip, image_encoder, copy_detector, scorers)


def load_folder_references(folder: Path, root: Path) -> ReferenceImages:
    """Return all images of a prepared or plain folder; each counts as trained on.

    `root` is the evaluation's folder. Raises ConfigError if there is no such folder and DataError if it
    holds no images.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=f"--references {folder}")
    if (folder / manifest.MANIFEST_FILE).is_file():
        return _references(folder, [r for r in manifest.load_manifest(folder) if r.keep], set(), root)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError("the folder holds no images", where=str(folder))
    return ReferenceImages(
        [file.name for file in files],
        [frame_source(file) for file in files],
        [True] * len(files),
        _relative_path(folder, root),
    )


def load_run_references(recipe: Recipe, root: Path) -> ReferenceImages:
    """Return the images of the subject in a run's dataset.

    These are the images with the trigger in a caption, or all if no caption has it. Images that the run held
    out are references too, but a sample cannot be a copy of them.
    """
    records = load_training_records(recipe.dataset)
    split = run_plan.split_held_out(
        [DatasetItem(r, (0, 0, r.width, r.height), (r.width, r.height)) for r in records], recipe
    )
    if recipe.trigger:
        trigger = recipe.trigger
        records = [r for r in records if any(has_word(c.text, trigger) for c in r.captions)] or records
    return _references(recipe.dataset, records, {item.record.file for item in split.held_out}, root)


def _references(folder: Path, records: Sequence[Record], held_out: set[str], root: Path) -> ReferenceImages:
    return ReferenceImages(
        [record.file for record in records],
        [_record_source(folder, record) for record in records],
        [record.file not in held_out for record in records],
        _relative_path(folder, root),
    )


def _relative_path(folder: Path, root: Path) -> str:
    return Path(os.path.relpath(folder, root)).as_posix()


def _record_source(folder: Path, record: Record) -> FrameSource:
    return FrameSource(record.content_hash, lambda: [decode.read_record_image(folder, record)])
