"""Half-precision weights, as every GPU run has them."""

from __future__ import annotations

import torch

from tests import tiny
from tests.models.families.common import (
    CAPTIONS,
    all_rows,
    conditions,
    encoded,
    family_of,
    noise_for,
    times,
)


@all_rows
def test_bfloat16_predicts_about_the_same(name):
    """Times and masks keep the type that the objective and the cache give them."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    only = family.trained_parts(tiny.tiny_folder(name))
    lower = family.load(tiny.tiny_folder(name), dtype=torch.bfloat16, only=only)
    noise, t, cond = noise_for(name), times(family)[:1], family.collate(encoded(name)[:1])
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in cond.items()}
    with torch.no_grad():
        exact = family.predict(family.denoiser(pipe), noise, t, cond)
        found = family.predict(family.denoiser(lower), noise.bfloat16(), t, half)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.1 * exact.norm()


@all_rows
def test_bfloat16_draws_pictures(name):
    """Encoding, guidance and decoding through the published pipeline, wholly in half precision."""
    row, family = tiny.ROWS[name], family_of(name)
    pipe = family.load(tiny.tiny_folder(name), dtype=torch.bfloat16)
    for attribute in row.unsaved:
        setattr(pipe, attribute, getattr(tiny.tiny_pipeline(name), attribute))
    width, height = row.sizes[0]
    cond, negative = (conditions(name, pipe, [text]) for text in (CAPTIONS[0], ""))
    pictures = family.sample(
        pipe,
        family.collate(cond),
        family.collate(negative),
        noise_for(name),
        steps=2,
        guidance=4.0 if row.on else None,
        width=width,
        height=height,
    )
    assert [picture.size for picture in pictures] == [(width, height)]
    assert any(low < high for low, high in pictures[0].getextrema()[:3])
