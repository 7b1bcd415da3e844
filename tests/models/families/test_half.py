"""Half-precision weights, as in every run on a GPU."""

from __future__ import annotations

import torch

from tests import tiny
from tests.models.families.common import (
    CAPTIONS,
    all_rows,
    encode_all,
    encoded,
    family_of,
    noise_for,
    two_timesteps,
)


@all_rows
def test_bfloat16_predicts_about_the_same(name):
    """Timesteps and masks keep their own data types."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    only = family.denoiser_components(tiny.tiny_folder(name))
    lower = family.load(tiny.tiny_folder(name), dtype=torch.bfloat16, only=only)
    noise, t, cond = noise_for(name), two_timesteps(family)[:1], family.collate(encoded(name)[:1])
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in cond.items()}
    with torch.no_grad():
        exact = family.predict(family.denoiser(pipe), noise, t, cond)
        rounded = family.predict(family.denoiser(lower), noise.bfloat16(), t, half)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.1 * exact.norm()


@all_rows
def test_bfloat16_samples_images(name):
    """Encoding, guidance and decoding by the published pipeline, all in half precision."""
    row, family = tiny.ROWS[name], family_of(name)
    pipe = family.load(tiny.tiny_folder(name), dtype=torch.bfloat16)
    for attribute in row.unsaved_attributes:
        setattr(pipe, attribute, getattr(tiny.tiny_pipeline(name), attribute))
    width, height = row.sizes[0]
    cond, negative = (encode_all(name, pipe, [text]) for text in (CAPTIONS[0], ""))
    images = family.sample(
        pipe,
        family.collate(cond),
        family.collate(negative),
        noise_for(name),
        num_inference_steps=2,
        guidance_scale=4.0 if row.guidance_on else None,
        width=width,
        height=height,
    )
    assert [image.size for image in images] == [(width, height)]
    assert any(low < high for low, high in images[0].getextrema()[:3])
