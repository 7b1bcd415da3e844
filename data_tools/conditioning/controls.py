"""Conditioning images generated from the images: edges, depth maps, poses, and masks for inpainting.

They are generated at the size that the image is trained at, as the tools that sample with them do: lines one
pixel wide stay so. The files are stored in hidden folders; a control or mask of the user's is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_tools.captioners import ModelFolder
from data_tools.conditioning import attach, masks
from data_tools.conditioning.depth import DepthEstimator
from data_tools.conditioning.edges import MAX_THRESHOLD, SoftEdgeDetector, canny
from data_tools.conditioning.pose import PoseEstimator
from data_tools.conditioning.random_masks import random_mask
from data_tools.conditioning.update import Save, update_records
from data_tools.scan import replace_notes
from lorakit.core import checksums, dataset_paths, storage
from lorakit.core.errors import ConfigError
from lorakit.imaging import crops, decode
from lorakit.imaging import masks as mask_files
from lorakit.manifest import ConditioningImage, Record

CONTROL_TYPES = ("canny", "depth", "pose", "softedge", "mask")
NOTHING_TO_CONTROL = "pose_not_found"
_MODEL_EXAMPLES = {
    "depth": "depth-anything/Depth-Anything-V2-Small-hf",
    "pose": "usyd-community/vitpose-base-simple --detector PekingU/rtdetr_r50vd_coco_o365",
    "softedge": "edge_detection_dexined_2024sep.onnx (OpenCV's model zoo)",
}
# Names that other tools have for these types.
_OTHER_NAMES = {
    "edges": "canny", "hed": "softedge", "pidinet": "softedge", "teed": "softedge", "dexined": "softedge",
    "openpose": "pose", "dwpose": "pose", "midas": "depth", "zoe": "depth", "inpaint": "mask",
}  # fmt: skip


@dataclass(frozen=True)
class ControlOptions:
    """`type` is one of CONTROL_TYPES. `model` is a depth or pose model, or the ONNX file of soft edges.

    `detector` finds the persons of poses. The thresholds are those of `cv2.Canny`; `seed` selects the random
    masks.
    """

    type: str
    model: str | None = None
    detector: str | None = None
    low_threshold: int = 100
    high_threshold: int = 200
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        if self.type not in CONTROL_TYPES:
            raise ConfigError(
                f"{self.type!r} is not a type of control", where="type", remedy=_remedy_for(self.type)
            )
        example = _MODEL_EXAMPLES.get(self.type)
        if example and self.model is None:
            remedy = f"for example: --type {self.type} --model {example}"
            raise ConfigError(f"{self.type} needs a model", where="model", remedy=remedy)
        if self.model is not None and not example:
            raise ConfigError(f"{self.type} needs no model", where="model", remedy="leave out --model")
        if self.detector is not None and self.type != "pose":
            remedy = "leave out --detector"
            raise ConfigError(f"{self.type} needs no detector", where="detector", remedy=remedy)
        if not 0 < self.low_threshold <= self.high_threshold <= MAX_THRESHOLD:
            remedy = "use --low-threshold 100 --high-threshold 200"
            message = f"the thresholds must satisfy 0 < low <= high <= {MAX_THRESHOLD}"
            raise ConfigError(message, where="low-threshold", remedy=remedy)


def _remedy_for(name: str) -> str:
    """Return the type that is meant by a name of other tools, or the way to use any other control."""
    if known := _OTHER_NAMES.get(name.casefold()):
        return f"use --type {known}"
    return (
        f"use {', '.join(CONTROL_TYPES)}; generate any other control with the tool that you sample with, "
        "such as ComfyUI, and put it as NAME.control.png beside NAME.png"
    )


def generate_conditioning(
    folder: Path,
    records: Sequence[Record],
    options: ControlOptions,
    *,
    regenerate: bool = False,
    quiet: bool = True,
    save: Save | None = None,
) -> list[Record]:
    """Return the records with controls or masks of type `options.type`; those of the user's stay.

    `save` as in `update_records`.
    """
    options.check()
    if options.type == "mask":
        todo = [record for record in records if _needs_mask(record, regenerate)]
        return update_records(
            records, todo, lambda record: _with_mask(folder, record, options.seed),
            label="masks", quiet=quiet, save=save,
        )  # fmt: skip
    generator = _control_generator(options)
    origin = masks.GENERATED + generator.label
    todo = [record for record in records if record.keep and _needs_control(record, origin, regenerate)]
    return update_records(
        records, todo, lambda record: _with_control(folder, record, generator, options.type),
        label="controls", quiet=quiet, save=save,
    )  # fmt: skip


# ---- controls ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ControlGenerator:
    """A function that makes a control of an image (None: nothing to see), and the label that is stored."""

    label: str
    generate: Callable[[Image.Image], Image.Image | None]


def _control_generator(options: ControlOptions) -> _ControlGenerator:
    low, high, model = options.low_threshold, options.high_threshold, options.model or ""
    if options.type == "canny":
        return _ControlGenerator(f"canny {low} {high}", lambda image: canny(image, low, high))
    if options.type == "softedge":
        return _ControlGenerator(f"softedge {Path(model).name}", SoftEdgeDetector(model))
    if options.type == "depth":
        estimator = ModelFolder.resolve(model, "depth model")
        return _ControlGenerator(f"depth {estimator.name}", DepthEstimator(estimator, options.device))
    poses = ModelFolder.resolve(model, "pose model")
    detector = ModelFolder.resolve(options.detector, "person detector") if options.detector else None
    label = f"pose {poses.name}" + (f" {detector.name}" if detector else "")
    return _ControlGenerator(label, PoseEstimator(poses, detector, options.device))


def _needs_control(record: Record, origin: str, regenerate: bool) -> bool:
    """Return True if no control is the user's, and generated ones do not serve."""
    controls = [image for image in record.conditioning_images if image.type == "control"]
    only_generated = all(image.is_generated for image in controls)
    current = any((one.origin, (one.width, one.height)) == (origin, control_size(record)) for one in controls)
    return only_generated and (regenerate or not current)


def control_size(record: Record) -> tuple[int, int]:
    """Return the size of the whole image at the scale of training; without a bucket, its own size."""
    if record.bucket is None:
        return record.size
    left, top, right, bottom = crops.training_crop(record)
    width, height = record.bucket
    x, y = width / (right - left), height / (bottom - top)
    return max(1, round(record.width * x)), max(1, round(record.height * y))


def _with_control(folder: Path, record: Record, generator: _ControlGenerator, type: str) -> Record:
    image = decode.crop_and_resize(decode.read_record_image(folder, record), None, control_size(record))
    control = generator.generate(image)
    if control is None:
        notes = [f"{NOTHING_TO_CONTROL}: no person was detected; the image has no control"]
        return replace_notes(attach.without_generated_controls(record), (NOTHING_TO_CONTROL,), notes)
    file = f"{attach.CONTROL_FOLDER}/{attach.generated_stem(record)}-{type}.png"
    path = storage.save_image(folder / file, control)
    origin = masks.GENERATED + generator.label
    entry = ConditioningImage("control", file, checksums.sha256_file(path), *control.size, origin)
    return attach.with_generated_control(replace_notes(record, (NOTHING_TO_CONTROL,), []), entry)


# ---- masks -------------------------------------------------------------------------------------------------


def _needs_mask(record: Record, regenerate: bool) -> bool:
    own = (record.mask_source or "").startswith(masks.GENERATED)
    return record.keep and (record.mask is None or (regenerate and own))


def _with_mask(folder: Path, record: Record, seed: int) -> Record:
    """Return the record with a mask: the opaque part of the image, or else a random box or stroke."""
    if any(note.startswith("transparency:") for note in record.notes):
        label = "alpha"
        path = dataset_paths.file_path(folder, record.file)
        mask = mask_files.mask_from_alpha(path, first_frame=record.first_frame)
    else:
        label, mask = f"random {seed}", random_mask(record.size, record.content_hash, seed)
    file = f"{masks.MASK_FOLDER}/{masks.generated_mask_stem(record)}.png"
    storage.save_image(folder / file, mask)
    return masks.with_mask(record, mask, file, masks.GENERATED + label)
