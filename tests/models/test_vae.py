"""Latents compared with each pipeline's own decoding and image encoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorakit.core.errors import ConfigError
from lorakit.models import families, vae
from tests import oracle, tiny
from tests.models.families.common import all_rows, family_of, images_for, noise_for


def size_of(name: str) -> tuple[int, int]:
    return tiny.ROWS[name].sizes[1]


def pixels(name: str, rows: int = 2) -> torch.Tensor:
    width, height = size_of(name)
    pixels = torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return pixels[:, :, None] if family_of(name).is_video else pixels


def configured_pipeline(name: str) -> Any:
    """Return a fresh pipeline as `Family.load` does: the VAE's settings are those that the pipeline uses."""
    pipe = tiny.build(name)
    family_of(name)._configure_pipeline(pipe)
    return pipe


@all_rows
def test_decode_equals_the_pipeline(name):
    """Scale, shift and channel order are those of the pipeline's own decoding."""
    latents = noise_for(name, size_of(name), rows=2, seed=3)
    images = [images_for(name, size_of(name), row) for row in range(2)]
    expected = oracle.decoded(name, tiny.tiny_pipeline(name), latents, *size_of(name), images)[:, :3]
    ours = (vae.decode_latents(configured_pipeline(name).vae, latents) / 2 + 0.5).clamp(0, 1)
    assert expected.std() > 0.01
    assert (ours - expected).abs().max() <= 5e-5


@all_rows
def test_decode_inverts_encode(name):
    """decode(encode(x)) is the VAE's own round trip: scale, shift and order cancel."""
    pipe, image = configured_pipeline(name), pixels(name)
    raw = _reconstructed(pipe.vae, image)
    posterior = vae.encode_latents(pipe.vae, image)
    assert (
        posterior.mean.shape[1:]
        == posterior.std.shape[1:]
        == family_of(name).latent_shape(pipe, *size_of(name))
    )
    assert (vae.decode_latents(pipe.vae, posterior.mean) - raw).abs().max() <= 1e-4


def _reconstructed(autoencoder: Any, image: torch.Tensor) -> torch.Tensor:
    """Encode and decode by the VAE itself, without normalization."""
    is_video = bool(vae.VAE_SPECS[type(autoencoder).__name__].frames) and image.ndim == 4
    if vae.VAE_SPECS[type(autoencoder).__name__].alpha:
        image = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
    with torch.no_grad():
        output = autoencoder.encode(image[:, :, None] if is_video else image)
        latents = output.latent_dist.mean if hasattr(output, "latent_dist") else output.latent
        time = [torch.zeros(len(latents))] if autoencoder.config.get("timestep_conditioning") else []
        decoded = autoencoder.decode(latents, *time).sample
    return decoded[:, :3, 0] if is_video else decoded


def _image_to_image(name, pipe, image, generator):
    """Return the latents that the image-to-image pipeline starts from, before any noise."""
    import diffusers

    options = {"timestep": None, "batch_size": len(image), "num_images_per_prompt": 1, "dtype": torch.float32}
    class_names = {"sd15": "StableDiffusionImg2ImgPipeline", "sd3": "StableDiffusion3Img2ImgPipeline"}
    components = dict(pipe.components)
    if name == "sd15":
        components["requires_safety_checker"] = False
    image_to_image = getattr(diffusers, class_names[name])(**components)
    image_to_image.__dict__["scheduler"] = oracle.OneStep(pipe.scheduler, torch.tensor(1.0), stop=False)
    return image_to_image.prepare_latents(image, device="cpu", generator=generator, **options)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_encode_equals_image_to_image(name):
    pipe, image = tiny.tiny_pipeline(name), pixels(name)
    expected = _image_to_image(name, pipe, image, torch.Generator().manual_seed(7))
    posterior = vae.encode_latents(pipe.vae, image)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(7))
    assert posterior.std.min() > 0
    assert (posterior.mean + posterior.std * noise - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["flux2-dev", "flux2-klein"])
def test_encode_equals_reference_images(name):
    pipe, image = tiny.tiny_pipeline(name), pixels(name)
    with torch.no_grad():
        expected = pipe._encode_vae_image(image, generator=None)
        raw = pipe.vae.encode(image).latent_dist
        deviations = (
            pipe._patchify_latents(raw.std) / (pipe.vae.bn.running_var.view(1, -1, 1, 1) + 1e-4).sqrt()
        )
    posterior = vae.encode_latents(pipe.vae, image)
    assert pipe.vae.config.batch_norm_eps == 1e-4
    assert (posterior.mean - expected).abs().max() <= 1e-5
    assert (posterior.std - deviations).abs().max() <= 1e-5


def test_sd15_ignores_a_shift_as_its_pipeline_does(tmp_path):
    pipe = tiny.build("sd15")
    pipe.vae.register_to_config(shift_factor=0.5)
    pipe.save_pretrained(tmp_path)
    family = families.detect_family(tmp_path)
    loaded = family.load(tmp_path, dtype=torch.float32)
    plain = vae.encode_latents(tiny.tiny_pipeline("sd15").vae, pixels("sd15")).mean
    assert torch.equal(vae.encode_latents(loaded.vae, pixels("sd15")).mean, plain)
    latents = plain[:1]
    expected = oracle.decoded("sd15", pipe, latents, *size_of("sd15"))
    assert ((vae.decode_latents(loaded.vae, latents) / 2 + 0.5).clamp(0, 1) - expected).abs().max() <= 1e-5


def test_half_precision_weights_give_float32_latents():
    pipe = tiny.build("sd15")
    pipe.vae.to(torch.bfloat16)
    posterior = vae.encode_latents(pipe.vae, pixels("sd15"))
    exact = vae.encode_latents(tiny.tiny_pipeline("sd15").vae, pixels("sd15")).mean
    assert posterior.mean.dtype == posterior.std.dtype == torch.float32
    assert (posterior.mean - exact).abs().max() < 0.05 * exact.abs().max()
    assert vae.decode_latents(pipe.vae, posterior.mean).dtype == torch.float32


def test_unsupported_sizes_and_vae_classes_are_refused():
    config = tiny.tiny_pipeline("sd15").vae.config
    with pytest.raises(ConfigError, match="multiples of 4"):
        vae.latent_shape("AutoencoderKL", config, 66, 32)
    with pytest.raises(ConfigError, match="VQModel is not supported"):
        vae.latent_shape("VQModel", config, 64, 32)
