"""Sampling under control: img2img, a ControlNet and an IP-Adapter on the embedded bases."""

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
    root = tmp_path_factory.mktemp("guides")
    for name, scene in (
        ("heart", shape_world.Scene("heart", "red", "white")),
        ("ring", shape_world.Scene("ring", "blue", "yellow")),
    ):
        storage.save_image(root / f"{name}.png", shape_world.render_scene(scene, 96))
    return root


@pytest.fixture(scope="module")
def prompts(place) -> list[Prompt]:
    return [
        Prompt("a", "a red heart", "a red heart", seeds=SEEDS, image=place / "heart.png"),
        Prompt("b", "a blue ring", "a blue ring", seeds=SEEDS, image=place / "ring.png"),
    ]


def options(guide: controls.Control | None = None, batch: int = 4) -> pipeline.SamplingOptions:
    return pipeline.SamplingOptions(
        steps=6, guidance=3.0, size=(64, 64), batch=batch, quiet=True, guide=guide
    )


def draw(
    painter: pipeline.SamplingPipeline, prompts: list[Prompt], guide: controls.Control | None, batch: int = 4
) -> np.ndarray:
    shots = painter.draw(prompts, options(guide, batch), "x")
    return np.stack([np.asarray(shot.image, np.int16) for shot in shots])


@pytest.fixture(scope="module", params=base_model.EMBEDDED_BASES)
def painter(request) -> pipeline.SamplingPipeline:
    return pipeline.SamplingPipeline(request.param)


def given(prompts: list[Prompt]) -> np.ndarray:
    """The guiding pictures at the size that is drawn, one for each seed."""
    opened = [Image.open(p.image).convert("RGB").resize((64, 64)) for p in prompts for _ in SEEDS]
    return np.stack([np.asarray(picture, np.int16) for picture in opened])


def test_img2img_keeps_more_of_the_picture_at_a_lower_strength(painter, prompts):
    other = [replace(prompts[0], image=prompts[1].image), replace(prompts[1], image=prompts[0].image)]
    distances = [
        np.abs(draw(painter, other, controls.Control("img2img", strength)) - given(other)).mean()
        for strength in (0.34, 0.67, 1.0)
    ]
    assert distances[0] < 0.7 * min(distances[1:])


def test_img2img_is_the_same_in_any_batch(painter, prompts):
    guide = controls.Control("img2img", 0.67)
    assert np.abs(draw(painter, prompts, guide, 4) - draw(painter, prompts, guide, 1)).max() <= 2
    assert np.abs(draw(painter, prompts[1:], guide) - draw(painter, prompts, guide)[2:]).max() <= 2


@pytest.fixture(scope="module")
def unet() -> pipeline.SamplingPipeline:
    return pipeline.SamplingPipeline("tiny-unet")


@pytest.fixture(scope="module")
def controlnet(unet, tmp_path_factory) -> Path:
    """As ControlNets begin: a copy of the U-Net whose outputs are zero."""
    from diffusers import ControlNetModel

    folder = tmp_path_factory.mktemp("controlnet")
    torch.manual_seed(0)
    made = ControlNetModel.from_unet(unet.pipe.unet, conditioning_embedding_out_channels=(16, 32, 96))
    made.save_pretrained(folder)  # this autoencoder has four pixels to a latent, not eight
    return folder


@pytest.fixture(scope="module")
def taught(controlnet, tmp_path_factory) -> Path:
    """The same with random outputs, which depend on the picture."""
    from diffusers import ControlNetModel

    model = ControlNetModel.from_pretrained(controlnet)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "conv_out" in name or "controlnet_" in name:
            torch.nn.init.normal_(parameter, std=0.5 if "embedding" in name else 0.1)
    folder = tmp_path_factory.mktemp("taught")
    model.save_pretrained(folder)
    return folder


def test_a_controlnet_that_says_nothing_changes_nothing_and_one_that_does_follows_the_picture(
    unet, prompts, controlnet, taught
):
    plain = draw(unet, prompts, None)
    assert np.abs(draw(unet, prompts, controls.Control("controlnet", 1.0, controlnet)) - plain).max() <= 1
    guide = controls.Control("controlnet", 1.0, taught)
    under = draw(unet, prompts, guide)
    assert np.abs(under - plain).mean() > 1
    swapped = [replace(prompts[0], image=prompts[1].image), prompts[1]]
    other = draw(unet, swapped, guide)
    assert np.abs(other[:2] - under[:2]).mean() > 0.5
    assert np.abs(other[2:] - under[2:]).max() <= 2
    assert np.abs(draw(unet, prompts, controls.Control("controlnet", 0.0, taught)) - plain).max() <= 1
    assert np.abs(draw(unet, prompts, None) - plain).max() == 0  # the plain pipeline is as it was


def test_an_adapter_is_seen_under_control(prompts, taught):
    painter = pipeline.SamplingPipeline("tiny-unet")
    adapters.inject_adapter(painter.denoiser, rank=2, alpha=2, targets=painter.family.targets)
    torch.manual_seed(2)
    for _, parameter in adapters.trainable_parameters(painter.denoiser):
        torch.nn.init.normal_(parameter, std=1.0)
    guide = controls.Control("controlnet", 0.2, taught)
    on = draw(painter, prompts, guide)
    with adapters.adapters_disabled(painter.denoiser):
        off = draw(painter, prompts, guide)
    assert np.abs(on - off).mean() > 1


@pytest.fixture(scope="module")
def ip_adapter(unet, tmp_path_factory) -> Path:
    """A random IP-Adapter in the layout that they are published in."""
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


def test_an_ip_adapter_follows_the_picture(prompts, ip_adapter):
    plain = draw(pipeline.SamplingPipeline("tiny-unet"), prompts, None)
    painter = pipeline.SamplingPipeline("tiny-unet")
    guide = controls.Control("ip-adapter", 1.0, ip_adapter)
    under = draw(painter, prompts, guide)
    assert np.abs(under - plain).mean() > 1
    swapped = [replace(prompts[0], image=prompts[1].image), prompts[1]]
    other = draw(painter, swapped, guide)
    assert np.abs(other[:2] - under[:2]).mean() > 0.1
    assert np.abs(other[2:] - under[2:]).max() <= 2
    none = draw(
        pipeline.SamplingPipeline("tiny-unet"), prompts, controls.Control("ip-adapter", 0.0, ip_adapter)
    )
    assert np.abs(none - plain).max() <= 1


def test_what_does_not_fit_is_one_error(unet, prompts, tmp_path, place):
    with pytest.raises(ConfigError, match="has no image"):
        draw(unet, [replace(prompts[0], image=None)], controls.Control("img2img", 0.5))
    with pytest.raises(ConfigError, match=r"config\.json"):
        draw(unet, prompts, controls.Control("controlnet", 1.0, tmp_path))
    storage.write_json(tmp_path / "config.json", {"_class_name": "UNet2DConditionModel"})
    with pytest.raises(ConfigError, match="no ControlNet"):
        draw(unet, prompts, controls.Control("controlnet", 1.0, tmp_path))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), None),
        ((0.5, None, None), controls.Control("img2img", 0.5)),
        ((None, "{folder}:0.7", None), ("controlnet", 0.7)),
        ((None, None, "{folder}"), ("ip-adapter", 1.0)),
    ],
)
def test_the_options_are_read(tmp_path, given, expected):
    texts = [text.format(folder=tmp_path) if isinstance(text, str) else text for text in given]
    found = controls.parse_control(*texts)
    if isinstance(expected, tuple):
        expected = controls.Control(*expected, tmp_path)
    assert found == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0.0, None, None), "not above 0"),
        ((None, "nowhere:x", None), "is not a scale"),
        ((None, None, "nowhere"), "no such folder"),
        ((0.5, "a", None), "one kind"),
    ],
)
def test_options_that_cannot_work_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        controls.parse_control(*given)
