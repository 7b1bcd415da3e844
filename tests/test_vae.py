"""Latents against each pipeline's own decoding and its own image encoding."""

from __future__ import annotations

import pytest
import torch

from lorakit import families, vae
from lorakit.errors import ConfigError
from tests import oracle, tiny

NAMES = ["sd15", "sd3", "flux2-dev", "flux2-klein"]
SIZE = (64, 32)  # pixels, wide


def pixels(rows: int = 2) -> torch.Tensor:
    return torch.rand(rows, 3, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_decode_equals_the_pipeline(name):
    pipe = tiny.tiny_pipeline(name)
    family = families.find(tiny.tiny_folder(name))
    latents = torch.randn(1, *family.latent_shape(pipe, *SIZE), generator=torch.Generator().manual_seed(3))
    cond = family.collate(family.encode(pipe, ["a red circle"]))
    expected = oracle.decoded(pipe, latents, cond, *SIZE)
    ours = (vae.decode(pipe.vae, latents) / 2 + 0.5).clamp(0, 1)
    assert expected.std() > 0.01
    assert (ours - expected).abs().max() <= 1e-5


def _image_to_image(name, pipe, image, generator):
    """The latents the pipeline's image-to-image sibling starts from, before any noise."""
    import diffusers

    options = {"timestep": None, "batch_size": len(image), "num_images_per_prompt": 1, "dtype": torch.float32}
    kinds = {"sd15": "StableDiffusionImg2ImgPipeline", "sd3": "StableDiffusion3Img2ImgPipeline"}
    parts = dict(pipe.components)
    if name == "sd15":
        parts["requires_safety_checker"] = False
    sibling = getattr(diffusers, kinds[name])(**parts)
    sibling.__dict__["scheduler"] = oracle.OneStep(pipe.scheduler, torch.tensor(1.0), stop=False)
    return sibling.prepare_latents(image, device="cpu", generator=generator, **options)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_encode_equals_image_to_image(name):
    pipe, image = tiny.tiny_pipeline(name), pixels()
    expected = _image_to_image(name, pipe, image, torch.Generator().manual_seed(7))
    mean, std = vae.encode(pipe.vae, image)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    assert std.min() > 0
    assert (mean + std * noise - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["flux2-dev", "flux2-klein"])
def test_encode_equals_reference_images(name):
    pipe, image = tiny.tiny_pipeline(name), pixels()
    with torch.no_grad():
        expected = pipe._encode_vae_image(image, generator=None)
        raw = pipe.vae.encode(image).latent_dist
        deviations = (
            pipe._patchify_latents(raw.std) / (pipe.vae.bn.running_var.view(1, -1, 1, 1) + 1e-4).sqrt()
        )
    mean, std = vae.encode(pipe.vae, image)
    assert pipe.vae.config.batch_norm_eps == 1e-4
    assert (mean - expected).abs().max() <= 1e-5
    assert (std - deviations).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_decode_inverts_the_normalisation(name):
    """decode(encode(x)) is the autoencoder's own round trip: no scale, shift or order is lost between."""
    pipe, image = tiny.tiny_pipeline(name), pixels()
    mean, _ = vae.encode(pipe.vae, image)
    with torch.no_grad():
        expected = pipe.vae.decode(pipe.vae.encode(image).latent_dist.mean).sample
    assert mean.shape[1:] == families.find(tiny.tiny_folder(name)).latent_shape(pipe, *SIZE)
    assert (vae.decode(pipe.vae, mean) - expected).abs().max() <= 1e-4


def test_sd15_ignores_a_shift_as_its_pipeline_does(tmp_path):
    pipe = tiny.build("sd15")
    pipe.vae.register_to_config(shift_factor=0.5)
    pipe.save_pretrained(tmp_path)
    family = families.find(tmp_path)
    loaded = family.load(tmp_path, dtype=torch.float32)
    plain, _ = vae.encode(tiny.tiny_pipeline("sd15").vae, pixels())
    assert torch.equal(vae.encode(loaded.vae, pixels())[0], plain)
    cond = family.collate(family.encode(loaded, ["a red circle"]))
    latents = plain[:1]
    expected = oracle.decoded(pipe, latents, cond, *SIZE)
    assert ((vae.decode(loaded.vae, latents) / 2 + 0.5).clamp(0, 1) - expected).abs().max() <= 1e-5


def test_half_precision_weights_give_float32_latents():
    pipe = tiny.build("sd15")
    pipe.vae.to(torch.bfloat16)
    mean, std = vae.encode(pipe.vae, pixels())
    exact, _ = vae.encode(tiny.tiny_pipeline("sd15").vae, pixels())
    assert mean.dtype == std.dtype == torch.float32
    assert (mean - exact).abs().max() < 0.05 * exact.abs().max()
    assert vae.decode(pipe.vae, mean).dtype == torch.float32


def test_refusals():
    config = tiny.tiny_pipeline("sd15").vae.config
    with pytest.raises(ConfigError, match="multiples of 4"):
        vae.latent_shape("AutoencoderKL", config, 66, 32)
    with pytest.raises(ConfigError, match="no rule for the autoencoder AutoencoderDC"):
        vae.latent_shape("AutoencoderDC", config, 64, 32)
