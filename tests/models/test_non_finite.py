"""Networks that return NaN or infinity: the error names the cause, and no remedy that is in force already."""

from __future__ import annotations

import pytest
import torch

from lorakit.models import loading, non_finite, vae
from lorakit.models.families import detect_family
from tests import tiny

PRECISION_WORDS = ("fp32", "bf16", "float32", "precision")


def poisoned_vae(change) -> torch.nn.Module:
    network = tiny.build("sd15").vae
    change(network)
    return network


def set_weight(name: str, value: float):
    def change(network) -> None:
        network.get_parameter(name).data.view(-1)[0] = value

    return change


def scale_weights(network) -> None:
    for parameter in network.encoder.parameters():
        parameter.data.mul_(1e30)


VAE_CAUSES = {
    "NaN weight": (set_weight("encoder.conv_in.weight", float("nan")), "vae.encoder.conv_in.weight"),
    "infinite weight": (set_weight("quant_conv.bias", float("inf")), "vae.quant_conv.bias"),
    "weight too large": (scale_weights, "for every image"),
    "scaling factor": (lambda v: v.register_to_config(scaling_factor=float("inf")), "a setting of the VAE"),
    "shift": (lambda v: v.register_to_config(shift_factor=float("nan")), "a setting of the VAE"),
    "this image": (lambda v: None, "not for a gray image"),
}


@pytest.mark.parametrize("cause", VAE_CAUSES)
def test_the_error_of_a_vae_names_the_cause_and_no_precision(cause):
    change, words = VAE_CAUSES[cause]
    error = non_finite.vae_error(poisoned_vae(change), "dog.png")
    assert words in str(error)
    assert error.exit_code == 6
    assert error.remedy
    assert not any(word in error.remedy for word in PRECISION_WORDS)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_a_damaged_text_encoder_is_named(component):
    pipe = tiny.build("sdxl")
    encoder = getattr(pipe, component)
    name = next(name for name, _ in encoder.named_parameters() if "q_proj" in name)
    encoder.get_parameter(name).data.view(-1)[0] = float("nan")
    error = non_finite.text_error(pipe.components, lambda: [torch.tensor(0.0)], "caption 'x'")
    assert f"{component}.{name}" in str(error)


@pytest.mark.parametrize(
    ("empty", "words"), [(float("nan"), "for every text"), (0.0, "not for an empty one")]
)
def test_a_text_that_overflows_is_told_from_encoders_that_always_do(empty, words):
    error = non_finite.text_error({}, lambda: [torch.tensor(empty)], "caption 'x'")
    assert words in str(error)
    assert "caption 'x'" in str(error)


def large_activations(network) -> None:
    """Weights that are fine in float32 and overflow in float16, as those of SDXL's VAE."""
    network.decoder.conv_in.weight.data.mul_(3e4)
    network.decoder.conv_in.bias.data.zero_()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_vae_that_overflows_in_float16_decodes_and_encodes_in_float32(dtype, autocast):
    plain = poisoned_vae(large_activations)
    latents = 20 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = plain.decode(latents, return_dict=False)[0]
    half = poisoned_vae(large_activations).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        if dtype == torch.float16 or autocast:
            assert not half.decode(latents.to(dtype), return_dict=False)[0].isfinite().all()
        vae.compute_in_float32(half)
        decoded = half.decode(latents.to(dtype), return_dict=False)[0]
        encoded = half.encode(torch.zeros(1, 3, 16, 16, dtype=dtype)).latent_dist
    assert decoded.dtype == torch.float32
    assert torch.allclose(decoded, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
    assert encoded.mean.dtype == dtype
    assert half.dtype == dtype


@pytest.mark.parametrize("base", ["sd15", "flux2-klein", "wan"])
@pytest.mark.parametrize("dtypes", [(torch.float16, None), (torch.float32, torch.float16)])
def test_the_vae_of_a_pipeline_in_float16_computes_in_float32(base, dtypes):
    folder, cpu = tiny.tiny_folder(base), torch.device("cpu")
    family, (dtype, compute) = detect_family(folder), dtypes
    pipe = loading.load_components(family, folder, {"vae"}, dtype=dtype, device=cpu, compute_dtype=compute)
    latents = torch.zeros(1, *family.latent_shape(pipe, 64, 64)).to(dtype)
    seen: set[torch.dtype] = set()
    for module in pipe.vae.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            module.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        vae.decode_latents(pipe.vae, latents)
    assert seen == {torch.float32}


def test_black_samples_are_reported():
    network = tiny.build("sd15").vae
    with vae.watch_decoded_latents(network) as black, torch.no_grad():
        network.decode(torch.zeros(1, 4, 4, 4))
        assert black == []
        network.decode(torch.full((1, 4, 4, 4), float("nan")))
        assert black == [True]
    assert "decode" not in vars(network)
    with vae.watch_decoded_latents(None) as black:
        assert black == []
