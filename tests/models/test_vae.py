"""Latents against each pipeline's own decoding and its own image encoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorakit.core.errors import ConfigError
from lorakit.models import families, vae
from tests import oracle, tiny
from tests.models.families.common import all_rows, family_of, noise_for, pictures_for


def size_of(name: str) -> tuple[int, int]:
    return tiny.ROWS[name].sizes[1]


def pixels(name: str, rows: int = 2) -> torch.Tensor:
    width, height = size_of(name)
    pixels = torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return pixels[:, :, None] if family_of(name).clips else pixels


def settled(name: str) -> Any:
    """A fresh pipeline as `Family.load` leaves it: the autoencoder's settings are those the pipeline uses."""
    pipe = tiny.build(name)
    family_of(name)._settle(pipe)
    return pipe


@all_rows
def test_decode_equals_the_pipeline(name):
    """The scale, the shift and the order of channels are those that the pipeline itself decodes with."""
    latents = noise_for(name, size_of(name), rows=2, seed=3)
    pictures = [pictures_for(name, size_of(name), row) for row in range(2)]
    expected = oracle.decoded(name, tiny.tiny_pipeline(name), latents, *size_of(name), pictures)[:, :3]
    ours = (vae.decode_latents(settled(name).vae, latents) / 2 + 0.5).clamp(0, 1)
    assert expected.std() > 0.01
    assert (ours - expected).abs().max() <= 5e-5


@all_rows
def test_decode_inverts_encode(name):
    """decode(encode(x)) is the autoencoder's own round trip: no scale, shift or order is lost between."""
    pipe, image = settled(name), pixels(name)
    raw = _reconstructed(pipe.vae, image)
    mean, std = vae.encode_latents(pipe.vae, image)
    assert mean.shape[1:] == std.shape[1:] == family_of(name).latent_shape(pipe, *size_of(name))
    assert (vae.decode_latents(pipe.vae, mean) - raw).abs().max() <= 1e-4


def _reconstructed(autoencoder: Any, image: torch.Tensor) -> torch.Tensor:
    """Through the autoencoder and back, without any normalisation."""
    film = bool(vae.VAE_SPECS[type(autoencoder).__name__].frames) and image.ndim == 4
    if vae.VAE_SPECS[type(autoencoder).__name__].alpha:
        image = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
    with torch.no_grad():
        found = autoencoder.encode(image[:, :, None] if film else image)
        latents = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latent
        time = [torch.zeros(len(latents))] if autoencoder.config.get("timestep_conditioning") else []
        back = autoencoder.decode(latents, *time).sample
    return back[:, :3, 0] if film else back


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
    pipe, image = tiny.tiny_pipeline(name), pixels(name)
    expected = _image_to_image(name, pipe, image, torch.Generator().manual_seed(7))
    mean, std = vae.encode_latents(pipe.vae, image)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(7))
    assert std.min() > 0
    assert (mean + std * noise - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["flux2-dev", "flux2-klein"])
def test_encode_equals_reference_images(name):
    pipe, image = tiny.tiny_pipeline(name), pixels(name)
    with torch.no_grad():
        expected = pipe._encode_vae_image(image, generator=None)
        raw = pipe.vae.encode(image).latent_dist
        deviations = (
            pipe._patchify_latents(raw.std) / (pipe.vae.bn.running_var.view(1, -1, 1, 1) + 1e-4).sqrt()
        )
    mean, std = vae.encode_latents(pipe.vae, image)
    assert pipe.vae.config.batch_norm_eps == 1e-4
    assert (mean - expected).abs().max() <= 1e-5
    assert (std - deviations).abs().max() <= 1e-5


def test_sd15_ignores_a_shift_as_its_pipeline_does(tmp_path):
    pipe = tiny.build("sd15")
    pipe.vae.register_to_config(shift_factor=0.5)
    pipe.save_pretrained(tmp_path)
    family = families.detect_family(tmp_path)
    loaded = family.load(tmp_path, dtype=torch.float32)
    plain, _ = vae.encode_latents(tiny.tiny_pipeline("sd15").vae, pixels("sd15"))
    assert torch.equal(vae.encode_latents(loaded.vae, pixels("sd15"))[0], plain)
    latents = plain[:1]
    expected = oracle.decoded("sd15", pipe, latents, *size_of("sd15"))
    assert ((vae.decode_latents(loaded.vae, latents) / 2 + 0.5).clamp(0, 1) - expected).abs().max() <= 1e-5


def test_half_precision_weights_give_float32_latents():
    pipe = tiny.build("sd15")
    pipe.vae.to(torch.bfloat16)
    mean, std = vae.encode_latents(pipe.vae, pixels("sd15"))
    exact, _ = vae.encode_latents(tiny.tiny_pipeline("sd15").vae, pixels("sd15"))
    assert mean.dtype == std.dtype == torch.float32
    assert (mean - exact).abs().max() < 0.05 * exact.abs().max()
    assert vae.decode_latents(pipe.vae, mean).dtype == torch.float32


def test_refusals():
    config = tiny.tiny_pipeline("sd15").vae.config
    with pytest.raises(ConfigError, match="multiples of 4"):
        vae.latent_shape("AutoencoderKL", config, 66, 32)
    with pytest.raises(ConfigError, match="no rule for the autoencoder VQModel"):
        vae.latent_shape("VQModel", config, 64, 32)
