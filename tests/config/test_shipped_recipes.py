"""The built-in recipes fit their families, and the numbers in their comments are right."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch

from lorakit.adapters.formats import consumers
from lorakit.config import recipe
from lorakit.config.recipe import MemoryConfig
from lorakit.models import families
from lorakit.models.memory import quantize
from lorakit.training import objective
from tests import tiny

ROOT = Path(__file__).parents[2]
_KL = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512]}
_QWEN = {"_class_name": "AutoencoderKLQwenImage", "dim_mult": [1, 2, 4, 4]}
_WAN = {"_class_name": "AutoencoderKLWan", "dim_mult": [1, 2, 4, 4]}
_DC = {"_class_name": "AutoencoderDC", "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]}
# recipe: (family, row with the published denoiser, configuration of the published VAE)
KNOWN = {
    "sd15": ("sd15", "sd15", _KL),
    "sdxl": ("sdxl", "sdxl", _KL),
    "sd35": ("sd3", "sd3", _KL),
    "flux1-dev": ("flux1", "flux1-dev", _KL),
    "flux2-klein": ("flux2", "flux2-klein", _KL | {"_class_name": "AutoencoderKLFlux2"}),
    "qwen-image": ("qwen-image", "qwen-image", _QWEN),
    "z-image": ("z-image", "z-image", _KL),
    "chroma": ("chroma", "chroma", _KL),
    "sana": ("sana", "sana", _DC),
    "krea2": ("krea2", "krea2", _QWEN),
    "anima": ("anima", "anima", _QWEN),
    "wan": ("wan", "wan", _WAN),
}
NAMES = [name + ending for name in KNOWN for ending in ("", "-low-memory")]
# recipes with conditioning images: (family, row with the published denoiser, VAE)
CONDITIONED = {
    "flux1-kontext": ("flux1-kontext", "flux1-kontext", _KL),
    "flux1-control": ("flux1-control", "flux1-control", _KL),
    "qwen-image-edit": ("qwen-image-edit-plus", "qwen-image-edit-plus", _QWEN),
    "sd15-inpaint": ("sd15-inpaint", "sd15-inpaint", _KL),
    "wan-i2v": ("wan-i2v", "wan-i2v", _WAN),
}
ALL = [*NAMES, *CONDITIONED]
GIB = 2**30


def _file(name: str) -> Path:
    return recipe.builtin_recipes_folder() / f"{name}.yaml"


def _known(name: str):
    return (KNOWN | CONDITIONED)[name.removesuffix("-low-memory")]


@functools.cache
def _network(row: str) -> torch.nn.Module:
    """Build the published denoiser on the meta device."""
    full = tiny.ROWS[row].full
    with torch.device("meta"):
        return getattr(diffusers, full.class_name)(**full.config)


def _sizes(row: str) -> dict[str | None, float]:
    """Return the GiB of the published denoiser in bf16 and quantized (nf4: 4 bits, 8 more for every 64)."""
    network = _network(row)
    swapped = sum(m.weight.numel() for n, m in network.named_modules() if quantize.is_quantizable(n, m))
    kept = sum(p.numel() for p in network.parameters()) - swapped
    bits = {None: 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64}
    return {kind: (2 * kept + each * swapped) / GIB for kind, each in bits.items()}


def test_every_model_has_a_recipe_and_a_low_memory_recipe():
    shipped = {file.stem for file in recipe.builtin_recipes_folder().glob("*.yaml")} - {
        "quickstart-dit",
        "quickstart-unet",
    }
    assert shipped == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_the_family_accepts_the_recipe(name, tmp_path):
    made, (family, row, autoencoder) = recipe.load_recipe(_file(name)), _known(name)
    model = families.get_family(family)
    network = _network(row)
    for part, config in ((model.components.denoiser, dict(network.config)), ("vae", autoencoder)):
        (tmp_path / part).mkdir()
        kind = {"_class_name": type(network).__name__} if part != "vae" else {}
        (tmp_path / part / "config.json").write_text(json.dumps(kind | config, default=str))
    pipe = SimpleNamespace(**{model.components.denoiser: None, "vae": None}, lorakit_folder=tmp_path)
    assert made.resolution % model.size_multiple(pipe) == 0
    objective.objective_from_scheduler(model.objective, {}, made.objective, torch.ones(1000))
    assert made.adapter.targets == "attention"  # the full-size test finds these modules
    assert set(made.export) == consumers.loader_rules(family).keys(), (
        "the programs that load adapters of this family"
    )
    assert made.samples.prompts is None or (ROOT / made.samples.prompts).is_file()


@pytest.mark.parametrize("name", KNOWN)
def test_the_low_memory_variant_needs_less(name):
    large, small = (recipe.load_recipe(_file(name + ending)) for ending in ("", "-low-memory"))
    assert small.base == large.base
    assert small.effective_batch == large.effective_batch
    assert small.train.batch_size == 1
    assert small.resolution <= large.resolution
    assert isinstance(small.memory, MemoryConfig)
    sizes = _sizes(_known(name)[1])
    assert sizes[small.memory.quantize] < 0.9 * sizes[None]
    assert small.samples.prompts is None  # the VAE is not loaded


@pytest.mark.parametrize("name", ALL)
def test_the_numbers_in_the_comments_are_right(name):
    text, row = _file(name).read_text(encoding="utf-8"), _known(name)[1]
    full, sizes, made = tiny.ROWS[row].full, _sizes(row), recipe.load_recipe(_file(name))
    assert text.startswith("# ")
    assert f"--resolution {made.resolution} " in text
    for count, megabytes in re.findall(r"(\d+) attention modules[^;]*; rank 16 gives a (\d+) MB file", text):
        assert (int(count), int(megabytes)) == (
            full.modules,
            round(4 * full.millions_of_parameters),
        )  # float32
    for told in re.findall(r"takes ([\d.]+) GiB in bf16|\(([\d.]+) GiB in bf16\)", text):
        assert float(told[0] or told[1]) == pytest.approx(sizes[None], rel=0.04)
    for small, large in re.findall(r"([\d.]+) GiB instead of ([\d.]+)", text):
        kind = made.memory_config.quantize
        assert float(small) == pytest.approx(sizes[kind], rel=0.04)
        assert float(large) == pytest.approx(sizes[None], rel=0.04)


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_leaves_to_the_planner_what_changes_no_result(name):
    memory = recipe.load_recipe(_file(name)).memory_config
    decided = memory.model_dump(exclude_none=True).keys()
    assert decided == ({"quantize"} if memory.quantize else set())
