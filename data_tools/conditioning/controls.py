"""Controls made of the images themselves: edges, depth by a model, and masks to learn painting by.

Canny's detector (1986, doi:10.1109/TPAMI.1986.4767851) by numpy: smoothed with Pillow, gradients by Sobel,
thinned along the gradient, weak edges kept where they touch strong ones. All of it lies in hidden folders
beside the images; a control or mask of the user's is never replaced.
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
from lorakit.core import rng, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.imaging import decode
from lorakit.imaging import masks as mask_files
from lorakit.manifest import ConditioningImage, Record

CONTROL_KINDS = ("canny", "depth", "mask")
_BLUR_SIGMA = 1.4  # pixels, the customary width before Sobel's gradients


@dataclass(frozen=True)
class ControlOptions:
    """`kind` is one of KINDS. `low` and `high` are Canny's thresholds on gradients of 8-bit grey (0..1020);
    `model` is a depth model; `seed` chooses among random masks."""

    kind: str
    model: str | None = None
    low: int = 100
    high: int = 200
    seed: int = 0
    device: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work."""
        if self.kind not in CONTROL_KINDS:
            raise ConfigError(
                f"{self.kind!r} is no control", where="kind", remedy=f"use {', '.join(CONTROL_KINDS)}"
            )
        if (self.kind == "depth") != (self.model is not None):
            remedy = "give --kind depth --model FOLDER_OR_HUB_ID, for instance of a Depth Anything"
            raise ConfigError("depth, and only depth, is told by a model", where="model", remedy=remedy)
        if not 0 < self.low <= self.high <= 1020:
            remedy = "use --low 100 --high 200"
            raise ConfigError("0 < low <= high <= 1020", where="low", remedy=remedy)


def generate_conditioning(
    root: Path, records: Sequence[Record], options: ControlOptions, *, again: bool = False, quiet: bool = True
) -> list[Record]:
    """The records with controls (or masks) of the wanted kind; what they have of the user's stays."""
    options.check()
    if options.kind == "mask":
        return _generate_masks(root, records, options, again, quiet)
    label, make = _control_generator(options)
    by = masks.GENERATED + label
    todo = [record for record in records if record.keep and _needs_control(record, by, again)]
    made: dict[str, Record] = {}
    for record in track_progress(todo, "controls", len(todo), quiet=quiet):
        file = f"{attach.CONTROL_FOLDER}/{attach.generated_stem(record)}-{options.kind}.png"
        picture = make(decode.read_record_image(root, record))
        path = storage.save_image(root / file, picture)
        entry = ConditioningImage("control", file, storage.sha256_file(path), *picture.size, by)
        made[record.file] = attach.with_generated_control(record, entry)
    return [made.get(record.file, record) for record in records]


def _needs_control(record: Record, by: str, again: bool) -> bool:
    own = [one.by for one in record.given if one.kind == "control"]
    return all(one.startswith(masks.GENERATED) for one in own) and (again or by not in own)


def _control_generator(options: ControlOptions) -> tuple[str, Callable[[Image.Image], Image.Image]]:
    """(what a control says of its making, how it is made)."""
    if options.kind == "canny":
        label = f"canny {options.low} {options.high}"
        return label, lambda picture: canny(picture, options.low, options.high)
    model = ModelFolder.find(options.model or "", "depth model")
    estimator = DepthEstimator(model, options.device)
    return f"depth {model.name}", estimator


# ---- canny ------------------------------------------------------------------------------------------------


def canny(picture: Image.Image, low: int = 100, high: int = 200) -> Image.Image:
    """White edges on black, RGB, of the picture's size."""
    grey = np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(_BLUR_SIGMA)), dtype=np.float32)
    across, down = _sobel_gradients(grey)
    size = np.hypot(across, down)
    ridge = _non_maximum_suppression(size, across, down)
    edges = _hysteresis(ridge & (size >= high), ridge & (size >= low))
    return Image.fromarray(np.where(edges, 255, 0).astype(np.uint8)).convert("RGB")


def _sobel_gradients(grey: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Gradients (across, down) with the border repeated."""
    p = np.pad(grey, 1, mode="edge")
    column = p[:-2] + 2 * p[1:-1] + p[2:]
    row = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return column[:, 2:] - column[:, :-2], row[2:] - row[:-2]


def _non_maximum_suppression(
    size: NDArray[Any], across: NDArray[Any], down: NDArray[Any]
) -> NDArray[np.bool_]:
    """Where the gradient is largest among its two neighbours in the gradient's direction."""
    p = np.pad(size, 1)
    height, width = size.shape
    angle = np.rad2deg(np.arctan2(down, across)) % 180
    sector = ((angle + 22.5) // 45).astype(int) % 4
    ridge = np.zeros(size.shape, dtype=bool)
    for number, (dy, dx) in enumerate([(0, 1), (1, 1), (1, 0), (1, -1)]):
        before = p[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        after = p[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        ridge |= (sector == number) & (size > before) & (size >= after)
    return ridge


def _hysteresis(strong: NDArray[np.bool_], weak: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The strong edges and the weak ones that touch them, directly or through others."""
    kept, front = strong.copy(), list(zip(*np.nonzero(strong), strict=True))
    height, width = kept.shape
    while front:
        y, x = front.pop()
        for ny in range(max(y - 1, 0), min(y + 2, height)):
            for nx in range(max(x - 1, 0), min(x + 2, width)):
                if weak[ny, nx] and not kept[ny, nx]:
                    kept[ny, nx] = True
                    front.append((ny, nx))
    return kept


# ---- depth ------------------------------------------------------------------------------------------------


class DepthEstimator:
    """A depth estimator of transformers; near is bright, as the published control networks were taught."""

    def __init__(self, model: ModelFolder, device: str | None) -> None:
        import torch
        import transformers

        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.processor: Any = model.load(transformers.AutoImageProcessor, "depth model")
        kind = transformers.AutoModelForDepthEstimation
        made: Any = model.load(kind, "depth model", use_safetensors=True)
        self.model: Any = made.eval().requires_grad_(False).to(self.device)

    def __call__(self, picture: Image.Image) -> Image.Image:
        import torch

        inputs = self.processor(images=picture, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            found = self.model(**inputs).predicted_depth
        size = picture.height, picture.width
        depth = torch.nn.functional.interpolate(found[:, None].float(), size, mode="bicubic")[0, 0]
        low, high = depth.min(), depth.max()
        grey = (
            ((depth - low) / (high - low).clamp(min=torch.finfo(depth.dtype).tiny) * 255)
            .round()
            .clamp(0, 255)
        )
        return Image.fromarray(grey.to(torch.uint8).cpu().numpy()).convert("RGB")


# ---- masks ------------------------------------------------------------------------------------------------


def _generate_masks(
    root: Path, records: Sequence[Record], options: ControlOptions, again: bool, quiet: bool
) -> list[Record]:
    """Masks for the images that have none: their opaque part, or else a random box or stroke."""
    todo = [
        record
        for record in records
        if record.keep and (record.mask is None or (again and _generated_by_lorakit(record)))
    ]
    made: dict[str, Record] = {}
    for record in track_progress(todo, "masks", len(todo), quiet=quiet):
        if any(note.startswith("alpha:") for note in record.notes):
            by, mask = "alpha", mask_files.mask_from_alpha(root / record.file, first_frame=record.first_frame)
        else:
            by, mask = f"random {options.seed}", random_mask(record.size, record.pixels, options.seed)
        file = f"{masks.MASK_FOLDER}/{masks.generated_mask_stem(record)}.png"
        storage.save_image(root / file, mask)
        made[record.file] = masks.with_mask(record, mask, file, masks.GENERATED + by)
    return [made.get(record.file, record) for record in records]


def _generated_by_lorakit(record: Record) -> bool:
    return (record.mask_source or "").startswith(masks.GENERATED)


def random_mask(size: tuple[int, int], name: str, seed: int = 0) -> Image.Image:
    """A box or a thick stroke, white on black; the same for the same picture and seed."""

    def draw(what: str, low: float, high: float) -> float:
        return low + (high - low) * rng.keyed_uniform(seed, "mask", name, what)

    mask, (width, height) = Image.new("L", size), size
    pen = ImageDraw.Draw(mask)
    if rng.keyed_uniform(seed, "mask", name, "kind") < 0.5:
        across, down = draw("w", 0.2, 0.6) * width, draw("h", 0.2, 0.6) * height
        left, top = draw("x", 0, width - across), draw("y", 0, height - down)
        pen.rectangle((left, top, left + across, top + down), fill=255)
        return mask
    thick = max(2, round(draw("thick", 0.1, 0.25) * min(size)))
    points = [(draw(f"x{i}", 0.1, 0.9) * width, draw(f"y{i}", 0.1, 0.9) * height) for i in range(4)]
    pen.line(points, fill=255, width=thick, joint="curve")
    for x, y in points:
        pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return mask
