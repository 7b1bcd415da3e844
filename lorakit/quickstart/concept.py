"""A small, untidy dataset of something the embedded base has never seen, and the prompts to judge it by.

Like a folder from a phone: pictures of several sizes, some stored sideways with an EXIF flag, one with
transparency, one that broke on the way.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.quickstart import shape_world

CONCEPT_IMAGES = 24  # of the concept
REGULARIZATION_IMAGES = (
    48  # of what the base knows: without them everything it draws would drift towards the concept
)
PROMPTS_PER_KIND = 8  # of each kind
SEEDS = (0, 1, 2, 3)
CONCEPTS = (*shape_world.HELD_OUT_STYLES, *shape_world.HELD_OUT_SHAPES)
_SIZES = (64, 80, 96, 128)
_EXIF_ROTATED = {3: 6, 8: 8, 13: 3}  # picture: EXIF orientation it is stored with
_INVERSE_ROTATION = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
_TRANSPARENT = 5
_MIN_CONTRAST = (
    115.0  # RGB distance of shape and background below which neither people nor CLIP see the shape well
)


@dataclass(frozen=True)
class DemoConcept:
    """What is taught: `word` is what CLIP knows it by; the base has met neither the word nor the look."""

    word: str

    def __post_init__(self) -> None:
        if self.word not in CONCEPTS:
            raise ConfigError(
                f"{self.word!r} is not a concept the base has not seen",
                where="--concept",
                remedy=f"one of {', '.join(CONCEPTS)}",
            )

    @property
    def is_style(self) -> bool:
        """A style of drawing, or else a shape."""
        return self.word in shape_world.HELD_OUT_STYLES

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The words among which CLIP should pick this one."""
        return shape_world.STYLES if self.is_style else shape_world.SHAPES

    def scenes(self, count: int, seed: int) -> list[shape_world.Scene]:
        """Scenes of the concept, for a style in all base shapes in turn."""
        shapes = shape_world.BASE_SHAPES if self.is_style else (self.word,)
        style = self.word if self.is_style else "solid"
        rng = np.random.default_rng([seed, CONCEPTS.index(self.word)])
        return [_legible_scene(rng, shapes[index % len(shapes)], (style,)) for index in range(count)]


def regularization_scenes(count: int, seed: int) -> list[shape_world.Scene]:
    """Scenes the base knows how to draw, in all its shapes in turn."""
    rng = np.random.default_rng([seed, len(CONCEPTS)])
    shapes = shape_world.BASE_SHAPES
    return [
        _legible_scene(rng, shapes[index % len(shapes)], shape_world.BASE_STYLES) for index in range(count)
    ]


def _legible_scene(rng: np.random.Generator, shape: str, styles: tuple[str, ...]) -> shape_world.Scene:
    while True:
        scene = shape_world.random_scene(rng, shapes=(shape,), styles=styles)
        ink, paper = (
            np.array(shape_world.COLOURS[scene.colour]),
            np.array(shape_world.COLOURS[scene.background]),
        )
        if np.linalg.norm(ink - paper) >= _MIN_CONTRAST:
            return scene


def make_dataset(folder: Path, concept: DemoConcept) -> None:
    """Write the pictures with a caption file each."""
    for index, scene in enumerate(concept.scenes(CONCEPT_IMAGES, seed=1)):
        if index == _TRANSPARENT:
            scene = replace(scene, background="white", colour="blue")
        picture = shape_world.render_scene(scene, _SIZES[index % len(_SIZES)])
        name = f"{index:02d}"
        if index == _TRANSPARENT:
            storage.save_image(folder / f"{name}.png", _with_transparent_background(picture))
        elif index in _EXIF_ROTATED:
            storage.write_bytes(folder / f"{name}.jpg", _rotated_jpeg(picture, _EXIF_ROTATED[index]))
        else:
            storage.save_image(folder / f"{name}.png", picture)
        storage.write_text(folder / f"{name}.txt", shape_world.scene_caption(scene) + "\n")
    for index, scene in enumerate(regularization_scenes(REGULARIZATION_IMAGES, seed=1)):
        storage.save_image(folder / f"ordinary-{index:02d}.png", shape_world.render_scene(scene))
        storage.write_text(folder / f"ordinary-{index:02d}.txt", shape_world.scene_caption(scene) + "\n")
    broken = _jpeg(shape_world.render_scene(concept.scenes(1, seed=2)[0], 96))
    storage.write_bytes(folder / "broken.jpg", broken[: len(broken) * 6 // 10])
    storage.write_text(folder / "broken.txt", "a download that stopped half way\n")


def _jpeg(picture: Image.Image, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    options = {} if exif is None else {"exif": exif}
    picture.save(buffer, "JPEG", quality=95, subsampling=0, **options)
    return buffer.getvalue()


def _rotated_jpeg(picture: Image.Image, orientation: int) -> bytes:
    """The picture as a camera held sideways stores it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _jpeg(picture.transpose(_INVERSE_ROTATION[orientation]), exif)


def _with_transparent_background(picture: Image.Image) -> Image.Image:
    """The background made transparent, with a colour hidden under it that must never be trained on."""
    pixels = np.array(picture.convert("RGBA"))
    paper = (pixels[..., :3] == shape_world.COLOURS["white"]).all(-1)
    pixels[paper] = (255, 0, 255, 0)
    return Image.fromarray(pixels)


def make_prompts(concept: DemoConcept) -> list[Prompt]:
    """Prompts with the concept's word ("concept") and without it ("other"), each with the text it is scored
    by."""
    kinds = {
        "concept": concept.scenes(PROMPTS_PER_KIND, seed=3),
        "other": regularization_scenes(PROMPTS_PER_KIND, seed=3),
    }
    return [
        _prompt(f"{kind[0]}{index}", scene, kind)
        for kind, scenes in kinds.items()
        for index, scene in enumerate(scenes)
    ]


def _prompt(name: str, scene: shape_world.Scene, kind: str) -> Prompt:
    truth = shape_world.scene_caption(scene, say_solid=True)
    return Prompt(id=name, prompt=shape_world.scene_caption(scene), score_text=truth, seeds=SEEDS, kind=kind)


def preview_prompts(wanted: list[Prompt]) -> list[Prompt]:
    """A few of the prompts with one seed each, to watch the training by."""
    concept = [prompt for prompt in wanted if prompt.kind == "concept"][:3]
    other = [prompt for prompt in wanted if prompt.kind == "other"][:1]
    return [replace(prompt, seeds=SEEDS[:1]) for prompt in concept + other]


def write_prompt_file(path: Path, wanted: list[Prompt]) -> Path:
    """The prompts as the JSONL that `lorakit eval` and `lorakit sample` read."""
    rows = [
        {"id": p.id, "prompt": p.prompt, "score_text": p.score_text, "seeds": list(p.seeds), "kind": p.kind}
        for p in wanted
    ]
    return storage.write_jsonl(path, rows)
