"""A small, untidy dataset of a concept that the embedded base models have not seen, and its prompts.

It resembles a folder from a phone: images of several sizes, some rotated by an EXIF flag, one with
transparency, and one that is truncated.
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
REGULARIZATION_IMAGES = 48  # of known shapes and styles: without them all images drift towards the concept
SUBJECT_PROMPTS, UNRELATED_PROMPTS = 16, 8
SEEDS = (0, 1)  # more prompts say more than more seeds
CONCEPTS = (*shape_world.HELD_OUT_STYLES, *shape_world.HELD_OUT_SHAPES)
_SIZES = (64, 80, 96, 128)
_EXIF_ROTATED = {3: 6, 8: 8, 13: 3}  # index of an image: EXIF orientation that it is stored with
_INVERSE_ROTATION = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
_TRANSPARENT = 5  # index of an image
_MIN_CONTRAST = 115.0  # RGB distance of shape and background; below it people and CLIP hardly see the shape


@dataclass(frozen=True)
class DemoConcept:
    """A concept to train: CLIP knows it by `word`; the base models know neither the word nor the look."""

    word: str

    def __post_init__(self) -> None:
        if self.word not in CONCEPTS:
            raise ConfigError(
                f"{self.word!r} is not a concept of the quickstart",
                where="--concept",
                remedy=f"one of {', '.join(CONCEPTS)}",
            )

    @property
    def is_style(self) -> bool:
        """True for a style, False for a shape."""
        return self.word in shape_world.HELD_OUT_STYLES

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The words from which CLIP should choose this one."""
        return shape_world.STYLES if self.is_style else shape_world.SHAPES

    def scenes(self, count: int, seed: int) -> list[shape_world.Scene]:
        """Return scenes of the concept; a style appears on all base shapes in turn."""
        shapes = shape_world.BASE_SHAPES if self.is_style else (self.word,)
        style = self.word if self.is_style else "solid"
        rng = np.random.default_rng([seed, CONCEPTS.index(self.word)])
        return [_legible_scene(rng, shapes[index % len(shapes)], (style,)) for index in range(count)]


def regularization_scenes(count: int, seed: int) -> list[shape_world.Scene]:
    """Return scenes of shapes and styles that the base models know, with all shapes in turn."""
    rng = np.random.default_rng([seed, len(CONCEPTS)])
    shapes = shape_world.BASE_SHAPES
    return [
        _legible_scene(rng, shapes[index % len(shapes)], shape_world.BASE_STYLES) for index in range(count)
    ]


def _legible_scene(rng: np.random.Generator, shape: str, styles: tuple[str, ...]) -> shape_world.Scene:
    while True:
        scene = shape_world.random_scene(rng, shapes=(shape,), styles=styles)
        foreground = np.array(shape_world.COLOURS[scene.colour])
        background = np.array(shape_world.COLOURS[scene.background])
        if np.linalg.norm(foreground - background) >= _MIN_CONTRAST:
            return scene


def make_dataset(folder: Path, concept: DemoConcept) -> None:
    """Write the images, each with a caption file."""
    for index, scene in enumerate(concept.scenes(CONCEPT_IMAGES, seed=1)):
        if index == _TRANSPARENT:
            scene = replace(scene, background="white", colour="blue")
        image = shape_world.render_scene(scene, _SIZES[index % len(_SIZES)])
        name = f"{index:02d}"
        if index == _TRANSPARENT:
            storage.save_image(folder / f"{name}.png", _with_transparent_background(image))
        elif index in _EXIF_ROTATED:
            storage.write_bytes(folder / f"{name}.jpg", _rotated_jpeg(image, _EXIF_ROTATED[index]))
        else:
            storage.save_image(folder / f"{name}.png", image)
        storage.write_text(folder / f"{name}.txt", shape_world.scene_caption(scene) + "\n")
    for index, scene in enumerate(regularization_scenes(REGULARIZATION_IMAGES, seed=1)):
        storage.save_image(folder / f"ordinary-{index:02d}.png", shape_world.render_scene(scene))
        storage.write_text(folder / f"ordinary-{index:02d}.txt", shape_world.scene_caption(scene) + "\n")
    broken = _jpeg(shape_world.render_scene(concept.scenes(1, seed=2)[0], 96))
    storage.write_bytes(folder / "broken.jpg", broken[: len(broken) * 6 // 10])
    storage.write_text(folder / "broken.txt", "a download that stopped half way\n")


def _jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    options = {} if exif is None else {"exif": exif}
    image.save(buffer, "JPEG", quality=95, subsampling=0, **options)
    return buffer.getvalue()


def _rotated_jpeg(image: Image.Image, orientation: int) -> bytes:
    """Return a JPEG with rotated pixels and the EXIF orientation that turns them upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _jpeg(image.transpose(_INVERSE_ROTATION[orientation]), exif)


def _with_transparent_background(image: Image.Image) -> Image.Image:
    """Make the white background transparent, over a hidden colour that must not be trained on."""
    pixels = np.array(image.convert("RGBA"))
    is_background = (pixels[..., :3] == shape_world.COLOURS["white"]).all(-1)
    pixels[is_background] = (255, 0, 255, 0)
    return Image.fromarray(pixels)


def make_prompts(concept: DemoConcept) -> list[Prompt]:
    """Return prompts with the concept's word ("subject") and without it ("unrelated")."""
    concept_scenes = _new_scenes(concept.scenes(2 * SUBJECT_PROMPTS, seed=3), concept)[:SUBJECT_PROMPTS]
    other_scenes = _new_scenes(regularization_scenes(2 * UNRELATED_PROMPTS, seed=3), concept)
    return [
        *(_prompt(f"c{index}", scene, "subject") for index, scene in enumerate(concept_scenes)),
        *(
            _prompt(f"o{index}", scene, "unrelated")
            for index, scene in enumerate(other_scenes[:UNRELATED_PROMPTS])
        ),
    ]


def _new_scenes(scenes: list[shape_world.Scene], concept: DemoConcept) -> list[shape_world.Scene]:
    """Return the scenes that are in no caption of the dataset: the image of a known one looks like a copy."""
    trained = [*concept.scenes(CONCEPT_IMAGES, seed=1), *regularization_scenes(REGULARIZATION_IMAGES, seed=1)]
    captions = {shape_world.scene_caption(scene) for scene in trained}
    return [scene for scene in scenes if shape_world.scene_caption(scene) not in captions]


def _prompt(prompt_id: str, scene: shape_world.Scene, kind: str) -> Prompt:
    text = shape_world.scene_caption(scene)
    score_text = shape_world.scene_caption(scene, include_solid=True)
    return Prompt(id=prompt_id, prompt=text, score_text=score_text, seeds=SEEDS, kind=kind)


def preview_prompts(prompts: list[Prompt]) -> list[Prompt]:
    """Return a few of the prompts with one seed each, for samples during training."""
    subject = [prompt for prompt in prompts if prompt.kind == "subject"][:3]
    unrelated = [prompt for prompt in prompts if prompt.kind == "unrelated"][:1]
    return [replace(prompt, seeds=SEEDS[:1]) for prompt in subject + unrelated]


def write_prompt_file(path: Path, prompts: list[Prompt]) -> Path:
    """Write the prompts as the JSONL that `lorakit eval` and `lorakit sample` read."""
    rows = [
        {"id": p.id, "prompt": p.prompt, "score_text": p.score_text, "seeds": list(p.seeds), "kind": p.kind}
        for p in prompts
    ]
    return storage.write_jsonl(path, rows)
