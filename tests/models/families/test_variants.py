"""Folders of variants of a family's pipeline are trained as that family, or refused by its name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch

from lorakit.core.errors import ConfigError
from lorakit.models.families import FAMILIES, detect_family
from lorakit.models.families.variants import own_pipeline, variant_owner
from tests import tiny

OWN = {name: family for family in FAMILIES for name in family.pipelines}
EXPORTED = sorted(
    {name for names in diffusers._import_structure.values() for name in names if "Pipeline" in name}
)
TAKEN = [name for name in EXPORTED if own_pipeline(name) != name and name not in OWN]
OTHER_MODELS = re.compile(
    r"AltDiffusion|AudioDiffusion|AudioLDM|BlipDiffusion|IF|Kandinsky(?!5)|LDM|Marigold|MusicLDM"
    r"|Cosmos|UniDiffuser|VersatileDiffusion"
)
"""Models of their own, whose network has a class that a family's network has too."""


def stated_networks() -> dict[str, set[str]]:
    """Return the classes that each pipeline states for its denoiser, read from the source of diffusers."""
    stated: dict[str, set[str]] = {}
    for file in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        for part in re.split(r"^class ", file.read_text(encoding="utf-8"), flags=re.M)[1:]:
            arguments = re.search(r"def __init__\((.*?)\n    \)", part, re.S)
            lines = re.findall(r"^ +(?:transformer|unet): (.*)", arguments[1], re.M) if arguments else []
            stated[re.match(r"\w+", part)[0]] = set(re.findall(r"\w+Model\b", " ".join(lines)))
    return stated


NETWORKS = stated_networks()


def write_index(folder, name, **more):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name} | more))


def test_every_pipeline_of_diffusers_with_a_familys_network_is_classified():
    """A new version of diffusers fails here until its new variants are in the tables."""
    of_families = set().union(*(NETWORKS.get(name, set()) for name in OWN))
    names = [name for name in EXPORTED if name not in OWN and NETWORKS.get(name, set()) & of_families]
    variants = {
        name for name in names if own_pipeline(name) in OWN or variant_owner(name, FAMILIES) is not None
    }
    assert sorted(variants) == [name for name in names if not OTHER_MODELS.match(name)]
    assert len(variants) > 80


@pytest.mark.parametrize("name", TAKEN)
def test_a_variant_with_the_same_network_has_the_components_of_its_family(name, tmp_path):
    own = own_pipeline(name)
    family = OWN[own]
    write_index(tmp_path, name)
    assert detect_family(tmp_path) is family
    variant_class, own_class = getattr(diffusers, name), getattr(diffusers, own)
    components, own_components = (set(c._get_signature_keys(c)[0]) for c in (variant_class, own_class))
    assert own_components - set(own_class._optional_components) <= components <= own_components
    assert NETWORKS[name] & NETWORKS[own]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
        ("flux1-dev", "FluxImg2ImgPipeline"),
        ("sd3", "StableDiffusion3Img2ImgPipeline"),
        ("z-image", "ZImageInpaintPipeline"),
    ],
)
def test_a_variant_loads_as_the_pipeline_of_its_family(row, name, tmp_path):
    folder = shutil.copytree(tiny.tiny_folder(row), tmp_path / "base")
    own = tiny.tiny_pipeline(row)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    family = detect_family(folder)
    pipe = family.load(folder, dtype=torch.float32)
    assert type(pipe) is type(own)
    ours, theirs = (family.encode_text(p, ["a red circle"])[0] for p in (pipe, own))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPipeline"])
def test_the_refiner_is_refused_with_the_reason(name, tmp_path):
    write_index(tmp_path, name, requires_aesthetics_score=True, text_encoder=[None, None])
    with pytest.raises(ConfigError, match="lowest 200 of 1000 noise levels"):
        detect_family(tmp_path)


def test_a_variant_with_more_input_channels_is_refused(tmp_path):
    write_index(tmp_path, "StableDiffusion3InpaintPipeline")
    (tmp_path / "transformer").mkdir()
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps({"in_channels": 33, "out_channels": 16}))
    with pytest.raises(ConfigError, match="33 input channels instead of 16"):
        detect_family(tmp_path)
    config.write_text(json.dumps({"in_channels": 16, "out_channels": 16}))
    assert detect_family(tmp_path).name == "sd3"


@pytest.mark.parametrize(
    ("name", "owner", "plain"),
    [
        ("FluxControlNetInpaintPipeline", "flux1", "FluxPipeline"),
        ("FluxPriorReduxPipeline", "flux1", "FluxPipeline"),
        ("StableDiffusionXLControlNetUnionPipeline", "sdxl", "StableDiffusionXLPipeline"),
        ("StableDiffusionXLInstructPix2PixPipeline", "sdxl", "StableDiffusionXLPipeline"),
        ("StableDiffusion3ControlNetInpaintingPipeline", "sd3", "StableDiffusion3Pipeline"),
        ("StableDiffusionControlNetPAGPipeline", "sd15", "StableDiffusionPipeline"),
        ("QwenImageLayeredPipeline", "qwen-image", "QwenImagePipeline"),
        ("CogView4ControlPipeline", "cogview4", "CogView4Pipeline"),
        ("LTX2HDRPipeline", "ltx-2", "LTX2Pipeline"),
        ("WanVACEPipeline", "wan", "WanPipeline"),
        ("StableDiffusionXLModularPipeline", "sdxl", "StableDiffusionXLPipeline"),
    ],
)
def test_a_variant_with_other_inputs_is_refused_by_the_name_of_its_family(name, owner, plain, tmp_path):
    assert name in EXPORTED
    write_index(tmp_path, name)
    with pytest.raises(ConfigError, match=f"^{name} is a variant of ") as caught:
        detect_family(tmp_path)
    assert caught.value.remedy.endswith(f"family {owner}, whose model_index.json names {plain}")


@pytest.mark.parametrize(
    "name", ["ShapEImg2ImgPipeline", "FluxPipeline", "SanaImageToVideoPipeline", "FluxFutureInpaintPipeline"]
)
def test_other_pipelines_are_no_variants(name):
    """SanaImageToVideo belongs to Sana-Video, and a class that diffusers does not have to nothing."""
    assert variant_owner(name, FAMILIES) is None
