"""Images and conditioning images that are encoded together have the bytes that each has alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lorakit.models import vae_batches
from lorakit.models.vae_batches import ConditioningEncoder
from tests import tiny
from tests.models.families.common import family_of, images_for

CONDITIONED = ("sd15-inpaint", "flux1-kontext", "flux1-control", "qwen-image-edit", "wan-i2v")


@pytest.mark.parametrize("name", [name for name in CONDITIONED if name in tiny.ROWS])
def test_conditioning_images_are_encoded_together_with_the_bytes_of_each_alone(name, monkeypatch):
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    samples = [images_for(name, row=row) for row in range(5)]
    with torch.no_grad():
        alone = [family.encode_conditioning(pipe, images) for images in samples]
    counts = []
    encode = type(family).encode_conditioning

    def record(family, pipe, images, frames=1):
        counts.append(max(len(value) for value in images.values()))
        return encode(family, pipe, images, frames)

    monkeypatch.setattr(type(family), "encode_conditioning", record)
    monkeypatch.setattr(vae_batches, "batch_limit", lambda device, pixels: 2)
    encoder = ConditioningEncoder(family, pipe)
    together = encoder.encode(samples)
    assert max(counts) == 2 * max(len(value) for value in samples[0].values())
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(value.float(), other[key]) for key, value in one.items())


def test_a_family_that_mixes_conditioning_images_encodes_each_sample_alone(monkeypatch):
    class Mixing:
        @staticmethod
        def encode_conditioning(pipe, images, frames=1):
            return {"source_latents": images["source"].float() - images["source"].float().mean()}

    monkeypatch.setattr(vae_batches, "batch_limit", lambda device, pixels: 4)
    pipe = SimpleNamespace(vae=SimpleNamespace(device=torch.device("cpu")))
    encoder = ConditioningEncoder(Mixing(), pipe)
    samples = [{"source": torch.full((1, 3, 8, 8), 10 * row, dtype=torch.uint8)} for row in range(9)]
    assert all(not one["source_latents"].any() for one in encoder.encode(samples))
    assert encoder.batch_size(samples[0]) == 1
