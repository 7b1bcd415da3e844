"""The models that score, by name, and the reference images that they compare with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorakit import manifest
from lorakit.config.recipe import Recipe
from lorakit.core import dataset_paths
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.folders import relative_path
from lorakit.core.nearest import did_you_mean
from lorakit.data.items import DatasetItem, load_concepts, subject_items
from lorakit.evaluation.feature_cache import FrameSource, frame_source
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from lorakit.evaluation.metrics.face_identity import FaceEncoder
from lorakit.evaluation.metrics.image_encoders import load_default_encoder, load_image_encoder
from lorakit.evaluation.metrics.subject_mask import cut_out, load_mask_model
from lorakit.evaluation.on_demand import on_demand
from lorakit.evaluation.sample_files import IMAGE_SUFFIXES
from lorakit.evaluation.scoring_inputs import JudgeModels, ReferenceImages
from lorakit.imaging import decode, masks
from lorakit.manifest import Record
from lorakit.models import base_model, clip_score
from lorakit.models import device as devices
from lorakit.models.hub import UnreachableError
from lorakit.training.held_out import split_dataset

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_CLIP = "ViT-L-14/openai"
NO_IMAGE_ENCODER = "none"


@dataclass(frozen=True)
class JudgeOptions:
    """Names of the models that score.

    None for `clip_model` and `image_encoder` means the embedded CLIP alone for embedded bases, else
    ViT-L-14/openai and DINOv2 (without network the ImageNet encoder). The image encoder "none" uses CLIP's
    image tower instead.
    """

    clip_model: str | None = None
    image_encoder: str | None = None
    metrics: tuple[str, ...] = ()
    """Further metrics, each NAME or NAME=MODEL."""
    sscd: str | None = None
    """TorchScript file of the copy detector."""
    resize: clip_score.Resize | None = None
    """The way in which images that are not square are fitted; None pads them."""
    mask_model: str | None = None
    """Model that cuts out the subject: a TorchScript or ONNX file, or CLIPSeg or SAM 3 (folder or hub id)."""
    face_model: str | None = None
    """TorchScript or ONNX file that recognizes faces."""
    face_detector: str | None = None
    """ONNX file of YuNet; None uses OpenCV's cascades."""
    win_rates: tuple[str, ...] = ()
    """Metrics to count wins of against the base model, beside the preference models."""


DEFAULT_JUDGES = JudgeOptions()


def load_judges(options: JudgeOptions, base: str | None = None) -> JudgeModels:
    """Load the models; ConfigError if one is missing, before any image is sampled."""
    device = devices.default_device().type
    embedded = base is not None and base_model.is_embedded(base)
    clip_name = options.clip_model or (clip_score.EMBEDDED if embedded else DEFAULT_CLIP)
    clip = on_demand(partial(_load_clip, clip_name, options.resize, device))
    embedded = embedded or clip_name == clip_score.EMBEDDED
    encoder_name = options.image_encoder or (NO_IMAGE_ENCODER if embedded else None)
    image_encoder = copy_detector = None
    notes: list[str] = []
    if encoder_name is None:
        loaded, notes = load_default_encoder(resize=options.resize, device=device)
        image_encoder = on_demand(
            lambda: load_default_encoder(resize=options.resize, device=device)[0], loaded
        )
    elif encoder_name != NO_IMAGE_ENCODER:
        image_encoder = on_demand(
            partial(load_image_encoder, encoder_name, resize=options.resize, device=device)
        )
    if options.sscd:
        copy_detector = on_demand(partial(load_image_encoder, f"sscd:{options.sscd}", device=device))
    scorers = [on_demand(partial(load_prompt_scorer, text, device)) for text in options.metrics]
    mask_model = (
        on_demand(partial(load_mask_model, options.mask_model, device)) if options.mask_model else None
    )
    if options.face_detector and not options.face_model:
        remedy = "add --face-model FILE"
        raise ConfigError("a face detector alone measures nothing", where="--face-detector", remedy=remedy)
    faces = None
    if options.face_model:
        faces = on_demand(partial(FaceEncoder, options.face_model, options.face_detector, device))
    win_rates = _checked_win_rates(options.win_rates, [scorer.name for scorer in scorers])
    return JudgeModels(clip, image_encoder, copy_detector, scorers, mask_model, faces, notes, win_rates)


def _load_clip(name: str, resize: clip_score.Resize | None, device: str) -> clip_score.ClipScorer:
    """Load the CLIP; without network there is nothing that could replace it, as the image encoder is."""
    try:
        return clip_score.load_clip_scorer(name, "--clip-model", resize=resize, device=device)
    except UnreachableError as error:
        remedy = (
            f"{error.remedy}; prompt adherence needs a CLIP: copy the hub's cache from a machine that has it,"
            " or use --clip-model FOLDER (an open_clip folder)"
        )
        raise UnreachableError(error.message, where=error.where, remedy=remedy) from error


def _checked_win_rates(names: Sequence[str], scorers: Sequence[str]) -> list[str]:
    """Return the metrics to count wins of; ConfigError for one that is not measured for each image."""
    known = ("clip_t", "clip_i", "dino_i", *scorers)
    for name in names:
        if name not in known:
            meant = did_you_mean(name, known)
            remedy = f"one of {', '.join(known)}; others with --metric"
            raise ConfigError(f"{name!r} is not measured{meant}", where=f"--win-rate {name}", remedy=remedy)
    return list(names)


def load_folder_references(folder: Path, root: Path, class_noun: str | None = None) -> ReferenceImages:
    """Return all images of a prepared or plain folder; each counts as trained on.

    `root` is the evaluation's folder, `class_noun` names the subject. Raises ConfigError if there is no such
    folder and DataError if it holds no images.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=f"--references {folder}")
    if (folder / manifest.MANIFEST_FILE).is_file():
        records = [record for record in manifest.load_manifest(folder) if record.keep]
        return replace(_references(folder, records, root), class_nouns={None: class_noun})
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError("the folder holds no images", where=str(folder))
    return ReferenceImages(
        [file.name for file in files],
        [frame_source(file) for file in files],
        [True] * len(files),
        relative_path(folder, root),
        class_nouns={None: class_noun},
    )


def load_run_references(recipe: Recipe, root: Path) -> ReferenceImages:
    """Return the images of the subjects in a run's dataset (`subject_items`).

    Images that the run held out are references too, but a sample cannot be a copy of them.
    """
    items = [
        DatasetItem(data.concept, r, (0, 0, r.width, r.height), (r.width, r.height))
        for data in load_concepts(recipe.concepts)
        for r in data.records
    ]
    held_out = {item.record.content_hash for item in split_dataset(items, recipe).held_out}
    subjects = subject_items(items)
    chosen = [item for own in subjects.values() for item in own]
    folders_of_images = dict.fromkeys(dataset_paths.image_folder(item.folder) for item in chosen)
    parent = _common_folder(list(folders_of_images))
    return ReferenceImages(
        [(item.path.relative_to(parent) if parent else item.path).as_posix() for item in chosen],
        [_record_source(item.folder, item.record) for item in chosen],
        [item.record.content_hash not in held_out for item in chosen],
        relative_path(parent, root) if parent else None,
        [trigger for trigger, own in subjects.items() for _ in own],
        _cut_outs([(item.folder, item.record) for item in chosen]),
        {trigger: own[0].concept.class_noun for trigger, own in subjects.items()},
    )


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
        relative_path(dataset_paths.image_folder(folder), root),
        cut_outs=_cut_outs([(folder, record) for record in records]),
    )


def _cut_outs(records: Sequence[tuple[Path, Record]]) -> dict[int, FrameSource]:
    """Return by index the subject alone, of records with a mask."""
    return {row: _cut_out_source(folder, r) for row, (folder, r) in enumerate(records) if r.mask}


def _cut_out_source(folder: Path, record: Record) -> FrameSource:
    def open_cut_out() -> list[Image.Image]:
        image, mask = decode.read_record_image(folder, record), masks.read_record_mask(folder, record)
        assert mask is not None
        return [cut_out(image, np.asarray(mask) >= 128)]

    return FrameSource(f"{record.content_hash} cut out by {record.mask_content_hash}", open_cut_out)


def _record_source(folder: Path, record: Record) -> FrameSource:
    return FrameSource(record.content_hash, lambda: [decode.read_record_image(folder, record)])
