"""Conditioning images generated from the images: edges, depth maps, and masks for inpainting.

Canny's detector (1986, doi:10.1109/TPAMI.1986.4767851) in numpy: Gaussian blur, Sobel gradients, non-maximum
suppression, hysteresis. The files are stored in hidden folders beside the images; a control or mask of the
user's is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from data_tools.captioners import ModelFolder
from data_tools.conditioning import attach, masks
from lorakit.core import checksums, rng, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.imaging import decode
from lorakit.imaging import masks as mask_files
from lorakit.manifest import ConditioningImage, Record

CONTROL_KINDS = ("canny", "depth", "mask")
_BLUR_SIGMA = 1.4  # pixels; the usual blur before Sobel gradients


@dataclass(frozen=True)
class ControlOptions:
    """`type` is one of CONTROL_KINDS; `model` a depth model; `seed` selects the random masks.

    The thresholds are Canny's, on gradients of 8-bit gray (0..1020).
    """

    type: str
    model: str | None = None
    low_threshold: int = 100
    high_threshold: int = 200
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        if self.type not in CONTROL_KINDS:
            raise ConfigError(
                f"{self.type!r} is not a type of control",
                where="type",
                remedy=f"use {', '.join(CONTROL_KINDS)}",
            )
        if (self.type == "depth") != (self.model is not None):
            remedy = "give --type depth --model FOLDER_OR_HUB_ID, for example a Depth Anything model"
            raise ConfigError(
                "depth needs a model, and the other types need none", where="model", remedy=remedy
            )
        if not 0 < self.low_threshold <= self.high_threshold <= 1020:
            remedy = "use --low-threshold 100 --high-threshold 200"
            message = "the thresholds must satisfy 0 < low <= high <= 1020"
            raise ConfigError(message, where="low-threshold", remedy=remedy)


def generate_conditioning(
    root: Path,
    records: Sequence[Record],
    options: ControlOptions,
    *,
    regenerate: bool = False,
    quiet: bool = True,
) -> list[Record]:
    """Return the records with controls or masks of type `options.type`; those of the user's stay."""
    options.check()
    if options.type == "mask":
        return _generate_masks(root, records, options, regenerate, quiet)
    generator = _control_generator(options)
    origin = masks.GENERATED + generator.label
    todo = [record for record in records if record.keep and _needs_control(record, origin, regenerate)]
    updated: dict[str, Record] = {}
    for record in track_progress(todo, "controls", len(todo), quiet=quiet):
        file = f"{attach.CONTROL_FOLDER}/{attach.generated_stem(record)}-{options.type}.png"
        image = generator.generate(decode.read_record_image(root, record))
        path = storage.save_image(root / file, image)
        entry = ConditioningImage("control", file, checksums.sha256_file(path), *image.size, origin)
        updated[record.file] = attach.with_generated_control(record, entry)
    return [updated.get(record.file, record) for record in records]


def _needs_control(record: Record, origin: str, regenerate: bool) -> bool:
    """Return True if no control is the user's, and generated ones do not serve."""
    origins = [image.origin for image in record.conditioning_images if image.type == "control"]
    only_generated = all(known.startswith(masks.GENERATED) for known in origins)
    return only_generated and (regenerate or origin not in origins)


@dataclass(frozen=True)
class _ControlGenerator:
    """A function that makes a control of an image, and the label that the record stores."""

    label: str
    generate: Callable[[Image.Image], Image.Image]


def _control_generator(options: ControlOptions) -> _ControlGenerator:
    if options.type == "canny":
        label = f"canny {options.low_threshold} {options.high_threshold}"
        return _ControlGenerator(
            label, lambda image: canny(image, options.low_threshold, options.high_threshold)
        )
    model = ModelFolder.resolve(options.model or "", "depth model")
    return _ControlGenerator(f"depth {model.name}", DepthEstimator(model, options.device))


# ---- canny ------------------------------------------------------------------------------------------------


def canny(image: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    """Return white edges on black, RGB, of the image's size."""
    gray = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(_BLUR_SIGMA)), dtype=np.float32)
    grad_x, grad_y = _sobel_gradients(gray)
    magnitude = np.hypot(grad_x, grad_y)
    local_maxima = _non_maximum_suppression(magnitude, grad_x, grad_y)
    edges = _hysteresis(local_maxima & (magnitude >= high), local_maxima & (magnitude >= low))
    return Image.fromarray(np.where(edges, 255, 0).astype(np.uint8)).convert("RGB")


def _sobel_gradients(gray: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the gradients in x and y; the border is repeated."""
    p = np.pad(gray, 1, mode="edge")
    column = p[:-2] + 2 * p[1:-1] + p[2:]
    row = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return column[:, 2:] - column[:, :-2], row[2:] - row[:-2]


def _non_maximum_suppression(
    magnitude: NDArray[Any], grad_x: NDArray[Any], grad_y: NDArray[Any]
) -> NDArray[np.bool_]:
    """Return True where the gradient is larger than at its two neighbors along the gradient's direction."""
    p = np.pad(magnitude, 1)
    height, width = magnitude.shape
    angle = np.rad2deg(np.arctan2(grad_y, grad_x)) % 180
    sector = ((angle + 22.5) // 45).astype(int) % 4
    local_maxima = np.zeros(magnitude.shape, dtype=bool)
    for number, (dy, dx) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        before = p[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        after = p[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        local_maxima |= (sector == number) & (magnitude > before) & (magnitude >= after)
    return local_maxima


def _hysteresis(strong: NDArray[np.bool_], weak: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the strong edges, and the weak edges connected to them."""
    kept, stack = strong.copy(), list(zip(*np.nonzero(strong), strict=True))
    height, width = kept.shape
    while stack:
        y, x = stack.pop()
        for ny in range(max(y - 1, 0), min(y + 2, height)):
            for nx in range(max(x - 1, 0), min(x + 2, width)):
                if weak[ny, nx] and not kept[ny, nx]:
                    kept[ny, nx] = True
                    stack.append((ny, nx))
    return kept


# ---- depth ------------------------------------------------------------------------------------------------


class DepthEstimator:
    """A depth estimator of transformers. Near is bright, as published control networks expect it."""

    def __init__(self, model: ModelFolder, device: str | None) -> None:
        import transformers

        from lorakit.models.device import default_device

        self.device = device or default_device().type
        self.processor: Any = model.load_pretrained(transformers.AutoImageProcessor, "depth model")
        model_class = transformers.AutoModelForDepthEstimation
        network: Any = model.load_pretrained(model_class, "depth model", use_safetensors=True)
        self.model: Any = network.eval().requires_grad_(False).to(self.device)

    def __call__(self, image: Image.Image) -> Image.Image:
        import torch

        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            predicted_depth = self.model(**inputs).predicted_depth
        size = image.height, image.width
        depth = torch.nn.functional.interpolate(predicted_depth[:, None].float(), size, mode="bicubic")[0, 0]
        low, high = depth.min(), depth.max()
        gray = (
            ((depth - low) / (high - low).clamp(min=torch.finfo(depth.dtype).tiny) * 255)
            .round()
            .clamp(0, 255)
        )
        return Image.fromarray(gray.to(torch.uint8).cpu().numpy()).convert("RGB")


# ---- masks ------------------------------------------------------------------------------------------------


def _generate_masks(
    root: Path, records: Sequence[Record], options: ControlOptions, regenerate: bool, quiet: bool
) -> list[Record]:
    """Make a mask for each image without one: its opaque part, or else a random box or stroke."""
    todo = [
        record
        for record in records
        if record.keep and (record.mask is None or (regenerate and _generated_by_lorakit(record)))
    ]
    updated: dict[str, Record] = {}
    for record in track_progress(todo, "masks", len(todo), quiet=quiet):
        if any(note.startswith("transparency:") for note in record.notes):
            label = "alpha"
            mask = mask_files.mask_from_alpha(root / record.file, first_frame=record.first_frame)
        else:
            label, mask = (
                f"random {options.seed}",
                random_mask(record.size, record.content_hash, options.seed),
            )
        file = f"{masks.MASK_FOLDER}/{masks.generated_mask_stem(record)}.png"
        storage.save_image(root / file, mask)
        updated[record.file] = masks.with_mask(record, mask, file, masks.GENERATED + label)
    return [updated.get(record.file, record) for record in records]


def _generated_by_lorakit(record: Record) -> bool:
    return (record.mask_source or "").startswith(masks.GENERATED)


def random_mask(size: tuple[int, int], name: str, seed: int = 0) -> Image.Image:
    """Return a box or a stroke_width stroke, white on black; the same for the same `name` and seed."""

    def uniform(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * rng.keyed_uniform(seed, "mask", name, purpose)

    mask, (width, height) = Image.new("L", size), size
    drawing = ImageDraw.Draw(mask)
    if rng.keyed_uniform(seed, "mask", name, "kind") < 0.5:
        box_width, box_height = uniform("w", 0.2, 0.6) * width, uniform("h", 0.2, 0.6) * height
        left, top = uniform("x", 0, width - box_width), uniform("y", 0, height - box_height)
        drawing.rectangle((left, top, left + box_width, top + box_height), fill=255)
        return mask
    stroke_width = max(2, round(uniform("thick", 0.1, 0.25) * min(size)))
    points = [(uniform(f"x{i}", 0.1, 0.9) * width, uniform(f"y{i}", 0.1, 0.9) * height) for i in range(4)]
    drawing.line(points, fill=255, width=stroke_width, joint="curve")
    for x, y in points:
        drawing.ellipse(
            (x - stroke_width / 2, y - stroke_width / 2, x + stroke_width / 2, y + stroke_width / 2), fill=255
        )
    return mask
