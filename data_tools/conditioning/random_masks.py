"""Masks for inpainting that need no model: a box or a stroke at a random place."""

from __future__ import annotations

from PIL import Image, ImageDraw

from lorakit.core import rng


def random_mask(size: tuple[int, int], name: str, seed: int = 0) -> Image.Image:
    """Return a box or a stroke, white on black; the same for the same `name` and seed."""

    def uniform(purpose: str, low: float, high: float) -> float:
        return low + (high - low) * rng.keyed_uniform(seed, "mask", name, purpose)

    mask, (width, height) = Image.new("L", size), size
    drawing = ImageDraw.Draw(mask)
    if rng.keyed_uniform(seed, "mask", name, "kind") < 0.5:
        box_width, box_height = uniform("w", 0.2, 0.6) * width, uniform("h", 0.2, 0.6) * height
        left, top = uniform("x", 0, width - box_width), uniform("y", 0, height - box_height)
        drawing.rectangle((left, top, left + box_width, top + box_height), fill=255)
        return mask
    thickness = max(2, round(uniform("thick", 0.1, 0.25) * min(size)))
    points = [(uniform(f"x{i}", 0.1, 0.9) * width, uniform(f"y{i}", 0.1, 0.9) * height) for i in range(4)]
    drawing.line(points, fill=255, width=thickness, joint="curve")
    for x, y in points:
        half = thickness / 2
        drawing.ellipse((x - half, y - half, x + half, y + half), fill=255)
    return mask
