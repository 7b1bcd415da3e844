"""The contract tests fail for each likely mistake in a family."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lorakit.models import vae
from tests.models import test_vae
from tests.models.families import test_oracle
from tests.models.families.common import all_rows, family_of

MISTAKES = {
    "sign": lambda predict, denoiser, noisy, t, cond: -predict(denoiser, noisy, t, cond),
    "timestep scale": lambda predict, denoiser, noisy, t, cond: predict(denoiser, noisy, t // 2, cond),
    "rows for columns": lambda predict, denoiser, noisy, t, cond: predict(denoiser, noisy.mT, t, cond).mT,
    "order of channels": lambda predict, denoiser, noisy, t, cond: predict(denoiser, noisy.flip(1), t, cond),
    "no text": lambda predict, denoiser, noisy, t, cond: predict(
        denoiser, noisy, t, {k: v * 0 if v.is_floating_point() else v for k, v in cond.items()}
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@all_rows
def test_a_wrong_denoiser_call_is_found(name, mistake, monkeypatch):
    family = family_of(name)
    right = family.predict
    monkeypatch.setattr(family, "predict", lambda *inputs: mistake(right, *inputs), raising=False)
    with pytest.raises((AssertionError, RuntimeError)):
        test_oracle.test_predict_equals_the_pipeline(name)


@pytest.mark.parametrize(("offset", "scale"), [(0.1, 1.0), (0.0, 1.1)], ids=["shift", "scale"])
@all_rows
def test_wrong_latents_are_found(name, offset, scale, monkeypatch):
    def wrong(autoencoder):
        statistics = right(autoencoder)
        return vae.Statistics(statistics.offset + offset, statistics.scale * scale)

    class_name = type(test_vae.configured_pipeline(name).vae).__name__
    spec = vae.VAE_SPECS[class_name]
    right = spec.statistics
    monkeypatch.setitem(vae.VAE_SPECS, class_name, dataclasses.replace(spec, statistics=wrong))
    with pytest.raises(AssertionError):
        test_vae.test_decode_equals_the_pipeline(name)


def test_a_mixed_up_batch_is_found(monkeypatch):
    family = family_of("sd3")
    right = family.predict

    def shared_timestep(denoiser, noisy, t, cond):
        return right(denoiser, noisy, torch.full_like(t, t[0].item()), cond)

    monkeypatch.setattr(family, "predict", shared_timestep, raising=False)
    with pytest.raises(AssertionError):
        test_oracle.test_batch_of_two_equals_two_singles("sd3")
