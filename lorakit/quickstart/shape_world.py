"""The shape world: images of a shape in a colour and a style on a background, with captions.

Images are rendered from signed distance functions with anti-aliasing. Lengths are in pixels of a 64-pixel
image; y grows downwards. Without jitter the world is finite: `all_scenes` enumerates it, and a twentieth of
the compositions (`is_held_out`) is never used in pre-training, so that there are new prompts to evaluate.

The words are training data of the embedded models and must not change.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]

IMAGE_SIZE = 64  # side of the image that the lengths below refer to
TRIGGER = "sks"

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 34, 40),
    "orange": (246, 138, 30),
    "yellow": (248, 222, 60),
    "green": (44, 150, 66),
    "blue": (40, 78, 204),
    "purple": (122, 48, 160),
    "pink": (248, 150, 194),
    "white": (246, 246, 246),
}
SHAPES = ("circle", "square", "triangle", "cross", "heart", "ring", "star", "moon")
STYLES = ("solid", "outlined", "dotted", "striped", "neon")
SIZES: dict[str, float] = {"small": 14.0, "medium": 17.0, "large": 20.0}  # radius
POSITIONS: dict[str, tuple[float, float]] = {  # offset of the shape's centre from the image's
    "centre": (0.0, 0.0),
    "left": (-11.0, 0.0),
    "right": (11.0, 0.0),
    "top": (0.0, -11.0),
    "bottom": (0.0, 11.0),
}
HELD_OUT_SHAPES = ("star", "moon")  # CLIP knows them, the base models do not
HELD_OUT_STYLES = ("striped", "neon")
BASE_SHAPES = tuple(shape for shape in SHAPES if shape not in HELD_OUT_SHAPES)
BASE_STYLES = tuple(style for style in STYLES if style not in HELD_OUT_STYLES)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(COLOURS),
    "style": STYLES,
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
}

# Words without a meaning here, in a share of the captions so that an unknown word does no harm.
FILLER_WORDS = (TRIGGER, "ohwx", "zwx", "xyz", "photo", "picture", "drawing", "nice", "simple", "plain",
           "bright", "my", "dog", "cat", "toy", "style", "art", "lovely", "new", "one")  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A composition; `dx`, `dy` (pixels) and `scale` are jitter, which captions do not mention."""

    shape: str
    colour: str
    background: str
    style: str = "solid"
    size: str = "medium"
    position: str = "centre"
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0


def all_scenes(shapes: Sequence[str] = SHAPES, styles: Sequence[str] = STYLES) -> list[Scene]:
    """Return every composition without jitter in a fixed order: 33,600 for the whole world."""
    axes = (shapes, COLOURS, COLOURS, styles, SIZES, POSITIONS)
    return [Scene(*words) for words in itertools.product(*axes) if words[1] != words[2]]


def is_held_out(scene: Scene) -> bool:
    """Return True if the composition is not used in pre-training (one in twenty, by a hash of its words)."""
    words = " ".join(getattr(scene, name) for name in ATTRIBUTES)
    return zlib.crc32(words.encode()) % 20 == 0


def with_attribute(scene: Scene, attribute: str, word: str) -> Scene:
    """Return the same scene with another word for one attribute."""
    change: dict[str, Any] = {attribute: word}
    return replace(scene, **change)


def jitter_scene(rng: np.random.Generator, scene: Scene) -> Scene:
    """Return the scene with its centre moved by up to 1.5 pixels and its radius changed by up to 5 %."""
    dx, dy, scale = rng.uniform(-1.0, 1.0, 3)
    return replace(scene, dx=1.5 * float(dx), dy=1.5 * float(dy), scale=1.0 + 0.05 * float(scale))


def random_scene(
    rng: np.random.Generator, shapes: Sequence[str] = BASE_SHAPES, styles: Sequence[str] = BASE_STYLES
) -> Scene:
    """Return one jittered scene, uniform over the shapes and styles and over everything else."""
    colour, background = rng.permutation(list(COLOURS))[:2]
    scene = Scene(
        shape=str(rng.choice(list(shapes))),
        colour=str(colour),
        background=str(background),
        style=str(rng.choice(list(styles))),
        size=str(rng.choice(list(SIZES))),
        position=str(rng.choice(list(POSITIONS))),
    )
    return jitter_scene(rng, scene)


# --- Captions


def scene_caption(
    scene: Scene,
    *,
    omit: Collection[str] = (),
    replace_words: Mapping[str, str] | None = None,
    include_solid: bool = False,
) -> str:
    """Return a caption such as `a large outlined red heart on a blue background at the left`.

    `omit` names attributes to leave out; `replace_words` replaces words (`{"striped": "sks"}` names a style
    by a trigger); the style solid is only mentioned with `include_solid`.
    """
    omitted = set(omit) | ({"style"} if scene.style == "solid" and not include_solid else set())
    adjectives = [getattr(scene, name) for name in ("size", "style", "colour") if name not in omitted]
    noun = "shape" if "shape" in omitted else scene.shape
    words = ["a", *adjectives, noun]
    if "background" not in omitted:
        words += ["on", "a", scene.background, "background"]
    if "position" not in omitted:
        words += ["in" if scene.position == "centre" else "at", "the", scene.position]
    return _with_articles([(replace_words or {}).get(word, word) for word in words])


def _with_articles(words: Sequence[str]) -> str:
    following = [*words[1:], ""]
    vowels = tuple("aeiou")
    return " ".join(
        "an" if w == "a" and n.startswith(vowels) else w for w, n in zip(words, following, strict=True)
    )


DROP_RATES = {"size": 0.3, "background": 0.15, "position": 0.15, "colour": 0.05, "shape": 0.05, "style": 0.1}


def random_caption(
    rng: np.random.Generator, scene: Scene, *, keep: Collection[str] = (), filler_rate: float = 0.2
) -> str:
    """Return a training caption with randomly omitted attributes, except `keep`, and random filler words."""
    omitted = {name for name, rate in DROP_RATES.items() if name not in keep and rng.random() < rate}
    text = scene_caption(scene, omit=omitted, include_solid="style" in keep or rng.random() < 0.3)
    if rng.random() >= filler_rate:
        return text
    words = text.split()
    for _ in range(int(rng.integers(1, 3))):
        # Mostly among the adjectives, the place of a trigger, otherwise anywhere.
        position = 1 if rng.random() < 0.5 else int(rng.integers(0, len(words) + 1))
        words.insert(position, _filler(rng))
    return _with_articles(["a" if word == "an" else word for word in words])


def _filler(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.2:
        return TRIGGER
    if kind < 0.7:
        return str(rng.choice(FILLER_WORDS))
    return "".join(chr(97 + int(c)) for c in rng.integers(0, 26, int(rng.integers(2, 5))))


# --- Signed distances: negative inside, in units of the shape's radius


def _circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 1.0


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - 0.76) - 0.24


def _moon(x: Floats, y: Floats) -> Floats:
    """A disc without a second disc at its right side."""
    return np.maximum(np.hypot(x - 0.1, y) - 1.0, 0.85 - np.hypot(x - 0.6, y))


def _heart(x: Floats, y: Floats) -> Floats:
    """A square on its corner, with a half disc on each of its two upper sides."""
    side = 0.53  # half the square's side, and the discs' radius
    centre = -0.12  # of the square, so that the heart is centred at the origin
    diamond = (np.abs(x) + np.abs(y - centre)) / math.sqrt(2.0) - side
    reach = side / math.sqrt(2.0)
    discs = np.hypot(np.abs(x) - reach, y - centre + reach) - side
    return np.minimum(diamond, discs)


def _polygon(corners: Sequence[tuple[float, float]]) -> Callable[[Floats, Floats], Floats]:
    """Return the signed distance to a closed polygon: the nearest edge, the sign by the even-odd rule."""

    def distance(x: Floats, y: Floats) -> Floats:
        nearest = np.full(x.shape, np.inf, np.float32)
        inside = np.zeros(x.shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            ex, ey = x1 - x0, y1 - y0
            px, py = x - x0, y - y0
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
            if ey != 0.0:
                inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + py * (ex / ey))
        return np.where(inside, -np.sqrt(nearest), np.sqrt(nearest))

    return distance


def _regular(points: int, inner: float) -> list[tuple[float, float]]:
    """Return the corners of a star, first tip at the top; `inner` is the radius between tips."""
    radii = [1.0, inner] * points
    angles = [math.pi * k / points - math.pi / 2 for k in range(2 * points)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


_S, _W = 0.86, 0.32  # the square's half side and the cross's half width
SHAPE_DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle,
    "square": _polygon([(-_S, -_S), (_S, -_S), (_S, _S), (-_S, _S)]),
    "triangle": _polygon([(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]),
    "cross": _polygon([(-_W, -1), (_W, -1), (_W, -_W), (1, -_W), (1, _W), (_W, _W),
                       (_W, 1), (-_W, 1), (-_W, _W), (-1, _W), (-1, -_W), (-_W, -_W)]),
    "heart": _heart,
    "ring": _ring,
    "star": _polygon(_regular(5, 0.45)),
    "moon": _moon,
}  # fmt: skip


# --- Rendering


def render_scenes(scenes: Sequence[Scene], size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Return images of the scenes, (N, size, size, 3) uint8."""
    images = np.empty((len(scenes), size, size, 3), np.uint8)
    by_look: dict[tuple[str, str], list[int]] = {}
    for index, scene in enumerate(scenes):
        by_look.setdefault((scene.shape, scene.style), []).append(index)
    for (shape, style), indices in by_look.items():
        images[indices] = _render_same_look([scenes[i] for i in indices], shape, style, size)
    return images


def render_scene(scene: Scene, size: int = IMAGE_SIZE) -> Image.Image:
    """Return the RGB image of a scene, `size` pixels square; equal scenes give equal bytes."""
    return Image.fromarray(render_scenes([scene], size)[0])


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, np.float32).reshape(-1, 1, 1)


def _render_same_look(scenes: Sequence[Scene], shape: str, style: str, size: int) -> NDArray[np.uint8]:
    """Render scenes of one shape and one style, which differ in everything else."""
    unit = IMAGE_SIZE / size  # length of one output pixel
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * unit - IMAGE_SIZE / 2).astype(np.float32)
    x = axis[None, None, :] - _column([POSITIONS[s.position][0] + s.dx for s in scenes])
    y = axis[None, :, None] - _column([POSITIONS[s.position][1] + s.dy for s in scenes])
    radius = _column([SIZES[s.size] * s.scale for s in scenes])
    x, y = np.broadcast_arrays(x / radius, y / radius)
    distance = SHAPE_DISTANCES[shape](x, y) * radius
    x, y = x * radius, y * radius

    foreground = np.array([COLOURS[s.colour] for s in scenes], np.float32)[:, None, None, :]
    background = np.array([COLOURS[s.background] for s in scenes], np.float32)[:, None, None, :]
    if style == "neon":
        background = background * 0.25
        glow = np.exp(-np.abs(distance) / (0.16 * radius))[..., None]
        tube = _coverage(np.abs(distance) - 0.05 * radius, unit)[..., None]
        rgb = background + (foreground - background) * glow
        rgb = rgb + (255.0 - rgb) * 0.8 * tube
    else:
        cover = _coverage(np.maximum(distance, _pattern(style, x, y, distance, radius)), unit)[..., None]
        rgb = background + (foreground - background) * cover
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _coverage(distance: Floats, unit: float) -> Floats:
    """Return the share of a pixel inside an edge at this distance from the pixel's centre."""
    return np.clip(0.5 - distance / unit, 0.0, 1.0)


def _pattern(style: str, x: Floats, y: Floats, distance: Floats, radius: Floats) -> Floats:
    """Return the signed distance in pixels of the style's cut: positive where the background shows."""
    if style == "outlined":
        return -distance - 0.2 * radius
    if style == "dotted":  # round holes on a grid of 8 pixels, one at the centre; the rim has none
        holes = 2.6 - np.hypot((x + 4.0) % 8.0 - 4.0, (y + 4.0) % 8.0 - 4.0)
        return np.minimum(holes, -distance - 1.5)
    if style == "striped":  # horizontal bands, 4 pixels of colour and 4 of background
        return np.abs((y + 4.0) % 8.0 - 4.0) - 2.0
    return np.full_like(distance, -np.inf)
