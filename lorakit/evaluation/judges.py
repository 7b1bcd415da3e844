"""The models that score, by name, and the reference images that they compare with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit import manifest
from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.words import has_word
from lorakit.data.items import DatasetItem, load_concepts
from lorakit.evaluation.feature_cache import FrameSource, frame_source
from lorakit.evaluation.measure import JudgeModels, ReferenceImages
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from lorakit.evaluation.metrics.image_encoders import DEFAULT_IMAGE_ENCODER, load_image_encoder
from lorakit.evaluation.sample_files import IMAGE_SUFFIXES
from lorakit.imaging import decode
from lorakit.manifest import Record
from lorakit.models import base_model, clip_score
from lorakit.models import device as devices
from lorakit.training.held_out import split_dataset

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
        return _references(folder, [r for r in manifest.load_manifest(folder) if r.keep], root)
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
    """Return the images of the subjects in a run's dataset.

    These are, in the folder of each trigger, the images with it in a caption, or all if no caption has it.
    Images that the run held out are references too, but a sample cannot be a copy of them.
    """
    items = [
        DatasetItem(data.concept, r, (0, 0, r.width, r.height), (r.width, r.height))
        for data in load_concepts(recipe.concepts)
        for r in data.records
    ]
    held_out = {item.record.content_hash for item in split_dataset(items, recipe).held_out}
    subjects = [concept for concept in recipe.concepts if concept.trigger] or recipe.concepts
    chosen = [item for concept in subjects for item in _subject_items(concept, items)]
    parent = _common_folder([concept.folder for concept in subjects])
    return ReferenceImages(
        [(item.path.relative_to(parent) if parent else item.path).as_posix() for item in chosen],
        [_record_source(item.folder, item.record) for item in chosen],
        [item.record.content_hash not in held_out for item in chosen],
        _relative_path(parent, root) if parent else None,
        [item.concept.trigger for item in chosen],
    )


def _subject_items(concept: Concept, items: Sequence[DatasetItem]) -> list[DatasetItem]:
    own, trigger = [item for item in items if item.concept == concept], concept.trigger
    if trigger is None:
        return own
    return [i for i in own if any(has_word(c.text, trigger) for c in i.record.captions)] or own


def _common_folder(folders: Sequence[Path]) -> Path | None:
    """Return the folder itself, or the one that all of them are in; None if they are on two drives."""
    try:
        common = Path(os.path.commonpath(folders))
    except ValueError:
        return None
    return common if all(folder.is_relative_to(common) for folder in folders) else None


def _references(folder: Path, records: Sequence[Record], root: Path) -> ReferenceImages:
    return ReferenceImages(
        [record.file for record in records],
        [_record_source(folder, record) for record in records],
        [True] * len(records),
        _relative_path(folder, root),
    )


def _relative_path(folder: Path, root: Path) -> str:
    return Path(os.path.relpath(folder, root)).as_posix()


def _record_source(folder: Path, record: Record) -> FrameSource:
    return FrameSource(record.content_hash, lambda: [decode.read_record_image(folder, record)])
