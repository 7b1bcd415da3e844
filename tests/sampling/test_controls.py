"""Image guidance: img2img, a ControlNet and an IP-Adapter on the embedded base models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import adapters
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.models import base_model
from lorakit.quickstart import shape_world
from lorakit.sampling import controls, pipeline

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("controls")
    for name, scene in (
        ("heart", shape_world.Scene("heart", "red", "white")),
        ("ring", shape_world.Scene("ring", "blue", "yellow")),
    ):
        storage.save_image(root / f"{name}.png", shape_world.render_scene(scene, 96))
    return root


@pytest.fixture(scope="module")
def prompts(place) -> list[Prompt]:
    return [
        Prompt("a", "a red heart", "a red heart", seeds=SEEDS, images=(place / "heart.png",)),
        Prompt("b", "a blue ring", "a blue ring", seeds=SEEDS, images=(place / "ring.png",)),
    ]


def options(control: controls.Control | None = None, batch_size: int = 4) -> pipeline.SamplingOptions:
    return pipeline.SamplingOptions(
        num_inference_steps=6,
        guidance_scale=3.0,
        size=(64, 64),
        batch_size=batch_size,
        quiet=True,
        control=control,
    )


def sample(
    sampling: pipeline.SamplingPipeline,
    prompts: list[Prompt],
    control: controls.Control | None,
    batch_size: int = 4,
) -> np.ndarray:
    samples = sampling.sample(prompts, options(control, batch_size), "x")
    return np.stack([np.asarray(one.image, np.int16) for one in samples])


@pytest.fixture(scope="module", params=base_model.EMBEDDED_BASES)
def sampling(request) -> pipeline.SamplingPipeline:
    return pipeline.SamplingPipeline(request.param)


def control_images(prompts: list[Prompt]) -> np.ndarray:
    """The images of the prompts at the sampled size, one for each seed."""
    images = [Image.open(p.images[0]).convert("RGB").resize((64, 64)) for p in prompts for _ in SEEDS]
    return np.stack([np.asarray(image, np.int16) for image in images])


def test_img2img_keeps_more_of_the_image_at_a_lower_strength(sampling, prompts):
    other = [replace(prompts[0], images=prompts[1].images), replace(prompts[1], images=prompts[0].images)]
    distances = [
        np.abs(sample(sampling, other, controls.Control("img2img", strength)) - control_images(other)).mean()
        for strength in (0.34, 0.67, 1.0)
    ]
    assert distances[0] < 0.7 * min(distances[1:])


def test_img2img_does_not_depend_on_the_batch_size(sampling, prompts):
    control = controls.Control("img2img", 0.67)
    assert np.abs(sample(sampling, prompts, control, 4) - sample(sampling, prompts, control, 1)).max() <= 2
    assert np.abs(sample(sampling, prompts[1:], control) - sample(sampling, prompts, control)[2:]).max() <= 2


@pytest.fixture(scope="module")
def unet() -> pipeline.SamplingPipeline:
    return pipeline.SamplingPipeline("tiny-unet")


@pytest.fixture(scope="module")
def controlnet(unet, tmp_path_factory) -> Path:
    """An untrained ControlNet: a copy of the U-Net whose outputs are zero."""
    from diffusers import ControlNetModel

    folder = tmp_path_factory.mktemp("controlnet")
    torch.manual_seed(0)
    model = ControlNetModel.from_unet(unet.pipe.unet, conditioning_embedding_out_channels=(16, 32, 96))
    model.save_pretrained(folder)  # this VAE has 4 pixels per latent, not 8
    return folder


@pytest.fixture(scope="module")
def trained_controlnet(controlnet, tmp_path_factory) -> Path:
    """The same with random outputs, which depend on the image."""
    from diffusers import ControlNetModel

    model = ControlNetModel.from_pretrained(controlnet)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "conv_out" in name or "controlnet_" in name:
            torch.nn.init.normal_(parameter, std=0.5 if "embedding" in name else 0.1)
    folder = tmp_path_factory.mktemp("trained_controlnet")
    model.save_pretrained(folder)
    return folder


def test_a_zero_controlnet_changes_nothing_and_a_trained_one_follows_the_image(
    unet, prompts, controlnet, trained_controlnet
):
    plain = sample(unet, prompts, None)
    assert np.abs(sample(unet, prompts, controls.Control("controlnet", 1.0, controlnet)) - plain).max() <= 1
    control = controls.Control("controlnet", 1.0, trained_controlnet)
    controlled = sample(unet, prompts, control)
    assert np.abs(controlled - plain).mean() > 1
    swapped = [replace(prompts[0], images=prompts[1].images), prompts[1]]
    other = sample(unet, swapped, control)
    assert np.abs(other[:2] - controlled[:2]).mean() > 0.5
    assert np.abs(other[2:] - controlled[2:]).max() <= 2
    assert (
        np.abs(sample(unet, prompts, controls.Control("controlnet", 0.0, trained_controlnet)) - plain).max()
        <= 1
    )
    assert np.abs(sample(unet, prompts, None) - plain).max() == 0  # the pipeline itself has not changed


def test_an_adapter_has_an_effect_under_control(prompts, trained_controlnet):
    sampling = pipeline.SamplingPipeline("tiny-unet")
    adapters.inject_adapter(sampling.denoiser, rank=2, alpha=2, targets=sampling.family.target_modules)
    torch.manual_seed(2)
    for _, parameter in adapters.trainable_parameters(sampling.denoiser):
        torch.nn.init.normal_(parameter, std=1.0)
    control = controls.Control("controlnet", 0.2, trained_controlnet)
    on = sample(sampling, prompts, control)
    with adapters.adapters_disabled(sampling.denoiser):
        off = sample(sampling, prompts, control)
    assert np.abs(on - off).mean() > 1


@pytest.fixture(scope="module")
def ip_adapter(unet, tmp_path_factory) -> Path:
    """A random IP-Adapter in the layout of published ones."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("ip")
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=12, **sizes)
    CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "image_encoder"
    )
    width, tokens = unet.pipe.unet.config.cross_attention_dim, 4
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * width, 12),
        "image_proj.proj.bias": torch.randn(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    crossing = [n for n in unet.pipe.unet.attn_processors if n.endswith("attn2.processor")]
    for number, name in enumerate(crossing):
        layer = unet.pipe.unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k", "to_v"):
            shape = getattr(layer, part).weight.shape
            tensors[f"ip_adapter.{2 * number + 1}.{part}_ip.weight"] = torch.randn(shape) * 0.2
    storage.write_safetensors(folder / "ip.safetensors", tensors)
    return folder


def test_an_ip_adapter_follows_the_image(prompts, ip_adapter):
    plain = sample(pipeline.SamplingPipeline("tiny-unet"), prompts, None)
    sampling = pipeline.SamplingPipeline("tiny-unet")
    control = controls.Control("ip-adapter", 1.0, ip_adapter)
    controlled = sample(sampling, prompts, control)
    assert np.abs(controlled - plain).mean() > 1
    swapped = [replace(prompts[0], images=prompts[1].images), prompts[1]]
    other = sample(sampling, swapped, control)
    assert np.abs(other[:2] - controlled[:2]).mean() > 0.1
    assert np.abs(other[2:] - controlled[2:]).max() <= 2
    at_zero = sample(
        pipeline.SamplingPipeline("tiny-unet"), prompts, controls.Control("ip-adapter", 0.0, ip_adapter)
    )
    assert np.abs(at_zero - plain).max() <= 1


def test_a_network_that_does_not_fit_is_a_config_error(unet, prompts, tmp_path, place):
    with pytest.raises(ConfigError, match="has no image"):
        sample(unet, [replace(prompts[0], images=())], controls.Control("img2img", 0.5))
    with pytest.raises(ConfigError, match=r"config\.json"):
        sample(unet, prompts, controls.Control("controlnet", 1.0, tmp_path))
    storage.write_json(tmp_path / "config.json", {"_class_name": "UNet2DConditionModel"})
    with pytest.raises(ConfigError, match="does not name a ControlNet"):
        sample(unet, prompts, controls.Control("controlnet", 1.0, tmp_path))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((None, None, None), None),
        ((0.5, None, None), controls.Control("img2img", 0.5)),
        ((None, "{folder}:0.7", None), ("controlnet", 0.7)),
        ((None, None, "{folder}"), ("ip-adapter", 1.0)),
    ],
)
def test_control_options_are_parsed(tmp_path, values, expected):
    texts = [text.format(folder=tmp_path) if isinstance(text, str) else text for text in values]
    control = controls.parse_control(*texts)
    if isinstance(expected, tuple):
        expected = controls.Control(*expected, tmp_path)
    assert control == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, None, None), "not above 0"),
        ((None, "nowhere:x", None), "is not a scale"),
        ((None, None, "nowhere"), "no such folder"),
        ((0.5, "a", None), "cannot be combined"),
    ],
)
def test_wrong_control_options_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        controls.parse_control(*values)
