"""Padding that a mask hides from the network is cut off: the same prediction with fewer operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from tests.models.families.common import CAPTIONS, encoded, family_of, noise_for, two_timesteps

ROWS = [
    "pixart-alpha", "sana", "ltx", "hunyuan-video", "qwen-image", "qwen-image-edit", "lumina2", "krea2"
]  # fmt: skip


def _predict(name: str, cond: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The prediction for one image, and its floating-point operations."""
    family = family_of(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        prediction = family.predict(
            family.denoiser(tiny.tiny_pipeline(name)), noise_for(name), two_timesteps(family)[:1], cond
        )
    return prediction, counter.get_total_flops()


@pytest.mark.parametrize("name", ROWS)
def test_a_text_without_its_padding_gives_the_same_prediction_for_less(name):
    family = family_of(name)
    ((mask, embeds),) = family.text.masks.items()
    texts = encoded(name)
    assert all(text[mask][-1] for text in texts), "the last position belongs to the text"
    assert len({len(text[mask]) for text in texts}) == 2
    cond = family.collate(texts[:1])
    padded = family.collate(texts[:1], cond[mask].shape[1] + 40)
    assert padded[mask].shape[1] == 40 + cond[mask].shape[1]
    prediction, flops = _predict(name, cond)
    expected, padded_flops = _predict(name, padded)
    assert (prediction - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert flops < padded_flops
    # the mask decides, not the zeros: what the padding holds changes nothing
    length = cond[mask].shape[1]
    for key in embeds:
        padded[key] = padded[key].clone()
        padded[key][:, length:] = 7.0
    assert (_predict(name, padded)[0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_families_without_a_text_mask_keep_their_padding():
    """It is an input of the network like the text itself. Chroma adds its mask, of 0 and 1, to the scores."""
    for name in ("flux1-dev", "chroma", "wan", "sd3", "auraflow", "hunyuan-dit"):
        assert not family_of(name).text.masks
        lengths = {tuple(sorted((key, len(value)) for key, value in text.items())) for text in encoded(name)}
        assert len(lengths) == 1, CAPTIONS
