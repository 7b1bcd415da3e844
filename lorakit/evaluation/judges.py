"""The models that score, by name, and the pictures they compare with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakit import manifest
from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError, DataError
from lorakit.data.items import DatasetItem, load_training_records
from lorakit.data.prompts import has_word
from lorakit.evaluation.feature_cache import FrameSource, frame_source
from lorakit.evaluation.measure import JudgeModels, ReferenceImages
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from lorakit.evaluation.metrics.image_encoders import DEFAULT_DINO, load_image_encoder
from lorakit.evaluation.sample_files import IMAGE_SUFFIXES
from lorakit.imaging import decode
from lorakit.manifest import Record
from lorakit.models import base_model, clip_score
from lorakit.training import run_plan

DEFAULT_CLIP = "ViT-L-14/openai"
NO_IMAGE_ENCODER = "none"


@dataclass(frozen=True)
class JudgeOptions:
    """Models by name. `clip` and `dino` None mean the defaults: the embedded CLIP alone for embedded bases,
    else ViT-L-14/openai and DINOv2. "none" for `dino` lets CLIP's image tower take its place."""

    clip: str | None = None
    dino: str | None = None
    also: tuple[str, ...] = ()
    sscd: str | None = None
    resize: clip_score.Resize | None = None


DEFAULT_JUDGES = JudgeOptions()


def load_judges(wanted: JudgeOptions, base: str | None = None) -> JudgeModels:
    """Load the models; whatever is missing is one ConfigError, before any picture is drawn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embedded = base is not None and base_model.is_embedded(base)
    name = wanted.clip or (clip_score.EMBEDDED if embedded else DEFAULT_CLIP)
    clip = clip_score.load_clip_scorer(name, "--clip", resize=wanted.resize, device=device)
    embedded = embedded or name == clip_score.EMBEDDED
    eye = wanted.dino or (NO_IMAGE_ENCODER if embedded else DEFAULT_DINO)
    return JudgeModels(
        clip,
        None if eye == NO_IMAGE_ENCODER else load_image_encoder(eye, resize=wanted.resize, device=device),
        load_image_encoder(f"sscd:{wanted.sscd}", device=device) if wanted.sscd else None,
        [load_prompt_scorer(text, device) for text in wanted.also],
    )


def load_folder_references(folder: Path, root: Path) -> ReferenceImages:
    """All images of a folder, prepared or plain; each counts as trained on. `root` is the evaluation's."""
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=f"--references {folder}")
    if (folder / manifest.MANIFEST_FILE).is_file():
        return _references(folder, [r for r in manifest.load_manifest(folder) if r.keep], set(), root)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError("the folder holds no images", where=str(folder))
    names = [file.name for file in files]
    place = Path(os.path.relpath(folder, root)).as_posix()
    return ReferenceImages(names, [frame_source(file) for file in files], [True] * len(files), place)


def load_run_references(made: Recipe, root: Path) -> ReferenceImages:
    """The subject's images in a run's data: those whose caption holds the trigger, where some do.

    Images that the run held out are references too, but no picture can be a copy of them.
    """
    records = load_training_records(made.dataset)
    held, _ = run_plan.split_held_out(
        [DatasetItem(r, (0, 0, r.width, r.height), (r.width, r.height)) for r in records], made
    )
    if made.trigger:
        word = made.trigger
        records = [r for r in records if any(has_word(c.text, word) for c in r.captions)] or records
    return _references(made.dataset, records, {item.record.file for item in held}, root)


def _references(folder: Path, records: Sequence[Record], held: set[str], root: Path) -> ReferenceImages:
    return ReferenceImages(
        [record.file for record in records],
        [_record_source(folder, record) for record in records],
        [record.file not in held for record in records],
        Path(os.path.relpath(folder, root)).as_posix(),
    )


def _record_source(folder: Path, record: Record) -> FrameSource:
    return FrameSource(record.pixels, lambda: [decode.read_record_image(folder, record)])
