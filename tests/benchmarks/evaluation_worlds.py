"""Worlds of images for the benchmark of the alarms: rendered and encoded once, then drawn from many times.

The first is the shape world with the embedded CLIP. The second is independent of both: features with a few
strong directions that all images of a scene share, and small copies with the spectrum of photos.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from lorakit.evaluation.metrics.image_statistics import image_statistics
from lorakit.evaluation.metrics.pixels import ImagePixels
from lorakit.imaging import thumbnails
from lorakit.models import clip_score
from lorakit.quickstart import shape_world
from lorakit.quickstart.concept import DemoConcept, regularization_scenes

FloatArray = NDArray[np.float64]
NUM_SCENES, NUM_RENDERS, NUM_REFERENCES = 48, 6, 40
COPY_KINDS = ("re-encoded", "cropped", "mirrored", "brighter")


def make_copy(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Return a copy that a model or a person might make of an image."""
    width, height = image.size
    if kind == "cropped":
        share = rng.uniform(0.03, 0.08)
        left, top = rng.uniform(0, share, 2)
        box = (left * width, top * height, (left + 1 - share) * width, (top + 1 - share) * height)
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    elif kind == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif kind == "brighter":
        image = ImageEnhance.Brightness(image).enhance(float(rng.choice([0.8, 1.2])))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=int(rng.integers(60, 90)))
    return Image.open(buffer).convert("RGB")


@dataclass(frozen=True)
class PooledPixels(ImagePixels):
    """Images of a pool, whose agreement with the references and their copies was measured once."""

    numbers: NDArray[np.int64]
    table: NDArray[np.float32]  # (all images, all images)

    def agreement(self, references: ImagePixels) -> NDArray[np.float32]:
        """Return the measured agreement (N, R)."""
        assert isinstance(references, PooledPixels)
        return self.table[np.ix_(self.numbers, references.numbers)]

    def rows(self, rows: Sequence[int]) -> PooledPixels:
        """Return the images with these indices."""
        i = list(rows)
        return PooledPixels(
            self.thumbnails[i], self.aspects[i], self.statistics[i], self.numbers[i], self.table
        )


@dataclass(frozen=True)
class World:
    """Images by their numbers: the true ones and the base model's of each scene, references, their copies."""

    name: str
    features: FloatArray  # (N, D), unit vectors
    pixels: PooledPixels
    fresh: NDArray[np.int64]  # (scenes, renders)
    base: NDArray[np.int64]  # (scenes, renders)
    overcooked: NDArray[np.int64]  # (scenes, renders)
    references: NDArray[np.int64]  # (references,)
    copies: NDArray[np.int64]  # (references, kinds)
    text_similarity: FloatArray  # (N, scenes)


def shape_world_images(word: str = "striped") -> World:
    """Render and encode images of a style of the shape world."""
    rng, concept = np.random.default_rng(0), DemoConcept(word)
    scenes, plain = concept.scenes(NUM_SCENES, seed=11), regularization_scenes(NUM_SCENES, seed=11)
    free = [attribute for attribute in ("size", "position")]

    def render(scene: shape_world.Scene) -> Image.Image:
        """Render a scene with what its prompt leaves open: size, position, jitter."""
        for name in free:
            scene = shape_world.with_attribute(scene, name, str(rng.choice(shape_world.ATTRIBUTES[name])))
        return shape_world.render_scene(shape_world.jitter_scene(rng, scene))

    fresh = [render(scene) for scene in scenes for _ in range(NUM_RENDERS)]
    base = [
        render(shape_world.with_attribute(scene, "style", other.style))
        for scene, other in zip(scenes, plain, strict=True)
        for _ in range(NUM_RENDERS)
    ]
    references = [shape_world.render_scene(scene) for scene in concept.scenes(NUM_REFERENCES, seed=12)]
    captions = [shape_world.scene_caption(scene, omit=free) for scene in scenes]
    clip = clip_score.load_clip_scorer(clip_score.EMBEDDED, "benchmark")
    return _world(f"shape world, {word}", fresh, base, references, rng, clip, captions)


def _world(
    name: str,
    fresh: list[Image.Image],
    base: list[Image.Image],
    references: list[Image.Image],
    rng: np.random.Generator,
    clip: clip_score.ClipScorer,
    captions: list[str],
) -> World:
    copies = [make_copy(image, kind, rng) for image in references for kind in COPY_KINDS]
    cooked = [ImageEnhance.Contrast(ImageEnhance.Color(image).enhance(2.0)).enhance(1.8) for image in fresh]
    images = [*fresh, *base, *references, *copies, *cooked]
    features = clip.image_features(images).double().numpy()
    small = np.stack([thumbnails.thumbnail(image) for image in images])
    statistics = np.stack([image_statistics(image) for image in images])
    texts = clip.text_features(captions).double().numpy()
    return _pooled(name, features, small, statistics, features @ texts.T)


def _pooled(
    name: str, features: FloatArray, small: NDArray[np.float32], statistics: FloatArray, text: FloatArray
) -> World:
    """Measure the agreement of all images with the references and their copies, and number the images."""
    sizes = [NUM_SCENES * NUM_RENDERS] * 2 + [NUM_REFERENCES, NUM_REFERENCES * len(COPY_KINDS)]
    sizes += [NUM_SCENES * NUM_RENDERS]
    starts = np.cumsum([0, *sizes])
    numbers = [np.arange(start, end) for start, end in itertools.pairwise(starts)]
    by_scene = [numbers[part].reshape(NUM_SCENES, NUM_RENDERS) for part in (0, 1, 4)]
    table = np.full((len(features), len(features)), -1, np.float32)
    columns = np.concatenate(numbers[2:4])
    rows = np.concatenate(numbers[:4])
    aspects = np.ones(len(features), np.float32)
    table[np.ix_(rows, columns)] = thumbnails.agreement(
        small[rows], aspects[rows], small[columns], aspects[columns]
    )
    pixels = PooledPixels(small, aspects, statistics, np.arange(len(features)), table)
    copies = numbers[3].reshape(NUM_REFERENCES, len(COPY_KINDS))
    return World(name, features, pixels, *by_scene, numbers[2], copies, text)


def generated_features(seed: int = 0) -> World:
    """Return features and small copies from a generator that knows neither the shape world nor CLIP."""
    rng, size = np.random.default_rng(seed), 192
    spectrum = 1 / np.arange(1, size + 1) ** 0.6
    subject, other = rng.normal(size=(2, size)) * 0.8 * np.sqrt((spectrum**2).mean())
    scenes = rng.normal(size=(NUM_SCENES, size)) * spectrum

    def images(center: FloatArray, scene: FloatArray) -> FloatArray:
        return center + 0.5 * scene + 0.6 * rng.standard_t(5, size=(len(scene), size)) * spectrum

    by_scene = np.repeat(scenes, NUM_RENDERS, axis=0)
    fresh, base = images(subject, by_scene), images(other, by_scene)
    references = images(subject, rng.normal(size=(NUM_REFERENCES, size)) * spectrum)
    copies = np.repeat(references, len(COPY_KINDS), axis=0)
    copies = copies + 0.15 * rng.normal(size=copies.shape) * spectrum
    features = np.concatenate([fresh, base, references, copies, fresh])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pictures = [_photo_like(rng) for _ in range(2 * len(by_scene) + NUM_REFERENCES)]
    originals = pictures[-NUM_REFERENCES:]
    pictures += [make_copy(image, kind, rng) for image in originals for kind in COPY_KINDS]
    pictures += [ImageEnhance.Color(image).enhance(2.5) for image in pictures[: len(by_scene)]]
    small = np.stack([thumbnails.thumbnail(image) for image in pictures])
    statistics = np.stack([image_statistics(image) for image in pictures])
    text = 0.15 + 0.03 * rng.normal(size=(len(features), NUM_SCENES))
    for part in (0, 1, 4):
        start = [0, len(by_scene), 0, 0, len(features) - len(by_scene)][part]
        rows = np.arange(start, start + len(by_scene))
        text[rows, np.repeat(np.arange(NUM_SCENES), NUM_RENDERS)] += 0.08
    return _pooled("independent generator", features, small, statistics, text)


def _photo_like(rng: np.random.Generator, side: int = 64) -> Image.Image:
    """Return noise whose spectrum falls like that of photos, with colors of its own."""
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    amplitude = 1 / np.maximum(frequencies, 1 / side) ** rng.uniform(0.9, 1.3)
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * amplitude).real for _ in range(3)]
    planes = [(plane - plane.mean()) / plane.std() for plane in planes]
    lightness = planes[0]
    values = [lightness + 0.5 * planes[1], lightness, lightness + 0.5 * planes[2]]
    pixels = np.stack(values, -1) * rng.uniform(30, 60) + rng.uniform(90, 150, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
