"""Every kind of adapter keeps one contract: nothing at first, gradient everywhere, true to its file."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lorakit import adapters
from lorakit.adapters import AdapterSpec, formats, targets
from lorakit.config.recipe import AdapterConfig
from lorakit.core import storage
from lorakit.core.errors import ConfigError

KINDS = ["lora", "rslora", "dora", "lokr", "loha", "oft"]
ADDED = ["lora", "rslora", "dora", "lokr", "loha"]  # kinds that also change convolutions
LINEAR, CONVOLUTION = "blocks.0.to_q", "blocks.0.conv1"


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.conv1, block.to_q = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(8, 12)
        self.blocks, self.out = nn.ModuleList([block]), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.blocks[0].conv1(x)  # (B, 8, H, W)
        return self.out(self.blocks[0].to_q(h.flatten(2).mT))


@pytest.fixture
def toy() -> Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Toy().eval().requires_grad_(False)


X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


def shape(kind: str, *, rank: int = 4, alpha: float = 6, init: str = "kaiming") -> AdapterSpec:
    modules = (LINEAR,) if kind == "oft" else (CONVOLUTION, LINEAR)
    return AdapterSpec(kind, rank, 16 if kind == "oft" else alpha, modules, init)


def perturb(model: nn.Module) -> None:
    for index, (_, parameter) in enumerate(adapters.trainable_parameters(model)):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.data = parameter.data + 0.3 * noise


def save(model: nn.Module, made: AdapterSpec, path) -> None:
    facts = made.facts("unet") | {"family": "sd15", "base_hash": ""}
    storage.write_safetensors(path, adapters.state(model, "unet"), adapters.pack_metadata(facts))


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_nothing_by_keyed_numbers_and_alone_is_trained(kind, toy):
    before, other = toy(X), copy.deepcopy(toy)
    adapters.inject_adapter(toy, shape=shape(kind), seed=3)
    assert (toy(X) - before).abs().max() <= 1e-6
    trained = {id(p) for p in toy.parameters() if p.requires_grad}
    assert trained == {id(p) for _, p in adapters.trainable_parameters(toy)}
    torch.manual_seed(99)
    adapters.inject_adapter(other, shape=shape(kind), seed=3)
    one, two = adapters.state(toy, "unet"), adapters.state(other, "unet")
    assert all(torch.equal(one[key], two[key]) for key in one.keys() | two.keys())
    assert adapters.count_trainable(toy) == (len(shape(kind).modules), sum(t.numel() for t in one.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_steps_move_something_and_later_ones_everything(kind, toy):
    adapters.inject_adapter(toy, shape=shape(kind))
    toy(X).square().sum().backward()
    assert any(p.grad.any() for _, p in adapters.trainable_parameters(toy))
    perturb(toy)
    toy.zero_grad()
    toy(X).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for _, p in adapters.trainable_parameters(toy))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same_and_strength_scales_the_change(kind, toy, tmp_path):
    fresh, plain = copy.deepcopy(toy), toy(X)
    adapters.inject_adapter(toy, shape=shape(kind))
    perturb(toy)
    save(toy, shape(kind), tmp_path / "a.safetensors")
    adapters.load(fresh, "unet", tmp_path / "a.safetensors")
    assert torch.equal(fresh(X), toy(X))
    assert (fresh(X) - plain).abs().max() > 1e-2
    inner = fresh.blocks[0].to_q
    given = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    base, full = inner.base_layer(given), inner(given)
    for strength in (0.5, 0.0, 1.0):
        adapters.set_adapter_strength(fresh, strength)
        assert torch.allclose(inner(given) - base, strength * (full - base), atol=1e-5)
    with adapters.adapters_disabled(fresh):
        assert torch.equal(fresh(X), plain)
    assert torch.equal(fresh(X), toy(X))


@pytest.mark.parametrize("kind", KINDS)
def test_export_reads_the_change_that_training_made(kind, toy, tmp_path):
    plain = copy.deepcopy(toy)
    adapters.inject_adapter(toy, shape=shape(kind))
    perturb(toy)
    save(toy, shape(kind), tmp_path / "a.safetensors")
    read = formats.read_adapter_file(tmp_path / "a.safetensors")
    assert len(read.changes) == len(shape(kind).modules)
    for name, change in read.changes.items():
        module = toy.get_submodule(name.removeprefix("unet."))
        base = plain.get_submodule(name.removeprefix("unet.")).weight
        module.merge()
        expected = module.base_layer.weight - base
        got = change.delta(base).reshape(base.shape)
        assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_what_begins_in_the_base_is_stored_relative_to_it(init, kind, toy, tmp_path):
    fresh, plain, weight = copy.deepcopy(toy), toy(X), toy.blocks[0].to_q.weight.clone()
    made = shape(kind, init=init)
    adapters.inject_adapter(toy, shape=made)
    assert torch.allclose(toy(X), plain, atol=1e-5)
    layer = toy.blocks[0].to_q
    assert torch.equal(layer.base_layer.weight, weight)
    scale = 6 / (2 if kind == "rslora" else 4)
    assert layer.scaling["default"] == scale
    part = scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    if init == "pissa":  # what is left holds the small singular values
        left = torch.linalg.svdvals(weight - part)
        assert torch.allclose(left[:4], torch.linalg.svdvals(weight)[4:8], atol=1e-5)
    else:
        one, two = torch.linalg.qr(weight)
        assert torch.allclose(part / scale, one[:, :4] @ two[:4], atol=1e-5)
    with adapters.adapters_disabled(toy):
        assert torch.equal(toy(X), plain)
    trained = [p for p in toy.parameters() if p.requires_grad]
    assert len(trained) == len(adapters.trainable_parameters(toy)) == 4
    perturb(toy)
    save(toy, made, tmp_path / "a.safetensors")
    assert adapters.load(fresh, "unet", tmp_path / "a.safetensors")["rank"] == 8
    assert torch.allclose(fresh(X), toy(X), atol=1e-5)
    back = copy.deepcopy(toy)
    perturb(back)
    adapters.load_state(back, "unet", adapters.state(toy, "unet"), "file")
    assert torch.equal(back(X), toy(X))


def test_a_weight_too_small_for_its_beginning_is_refused(toy):
    with pytest.raises(ConfigError, match="at most 8"):
        adapters.inject_adapter(toy, shape=shape("lora", rank=9, init="pissa"))


def test_gaussian_has_the_spread_of_one_over_the_rank(toy):
    adapters.inject_adapter(toy, shape=AdapterSpec("lora", 50, 1, (CONVOLUTION,), "gaussian"))
    values = dict(adapters.trainable_parameters(toy))[f"{CONVOLUTION}.lora_A.weight"]
    assert float(values.detach().std()) == pytest.approx(1 / 50, rel=0.1)


def test_oft_turns_no_convolution_and_its_blocks_divide_the_inputs(toy):
    with pytest.raises(ConfigError, match="is a convolution"):
        adapters.inject_adapter(toy, shape=AdapterSpec("oft", 4, 16, (CONVOLUTION,)))
    with pytest.raises(ConfigError, match=r"blocks of 3 .* 8 inputs of blocks\.0\.to_q"):
        adapters.inject_adapter(toy, shape=AdapterSpec("oft", 3, 16, (LINEAR,)))


def test_ranks_and_alphas_by_pattern_are_those_of_the_file(toy, tmp_path):
    settings = AdapterConfig(
        rank=2, alpha=4, conv_rank=3, rank_pattern={"to_q": 5, "re:.*q": 7}, alpha_pattern={"to_q": 1.5}
    )
    made = adapters.denoiser_adapter_spec(toy, settings, ["to_q", "out"])
    assert (made.ranks, made.alphas) == ({CONVOLUTION: 3, LINEAR: 5}, {CONVOLUTION: 6.0, LINEAR: 1.5})
    fresh = copy.deepcopy(toy)
    adapters.inject_adapter(toy, shape=made)
    assert {n: len(p) for n, p in adapters.trainable_parameters(toy) if "lora_A" in n} == {
        f"{CONVOLUTION}.lora_A.weight": 3,
        f"{LINEAR}.lora_A.weight": 5,
        "out.lora_A.weight": 2,
    }
    perturb(toy)
    save(toy, made, tmp_path / "a.safetensors")
    adapters.load(fresh, "unet", tmp_path / "a.safetensors")
    assert torch.equal(fresh(X), toy(X))
    for name, change in formats.read_adapter_file(tmp_path / "a.safetensors").changes.items():
        expected = toy.get_submodule(name.removeprefix("unet.")).get_delta_weight("default")
        assert torch.allclose(change.delta(), expected, atol=1e-6)


def test_modules_are_chosen_by_ending_expression_and_block(toy):
    assert targets.find_target_modules(toy, ["q"]) == []
    assert targets.find_target_modules(toy, ["to_q", r"re:blocks\.\d+\.conv\d"]) == [CONVOLUTION, LINEAR]
    assert targets.find_target_modules(toy, r".*(to_q|out)") == [LINEAR, "out"]
    only = adapters.denoiser_adapter_spec(
        toy, AdapterConfig(targets=["to_q", "out"], blocks=["blocks.0-3"]), []
    )
    assert only.modules == (LINEAR,)
    for block, name, inside in [
        ("mid_block", "mid_block.attentions.0.to_q", True),
        ("mid", "mid_block.attentions.0.to_q", False),
        ("down_blocks.1", "down_blocks.1.to_q", True),
        ("down_blocks.1", "down_blocks.11.to_q", False),
        ("blocks.2-4", "blocks.4.to_q", True),
        ("blocks.2-4", "blocks.5.to_q", False),
    ]:
        assert targets.module_in_block(block, name) is inside


@pytest.mark.parametrize(
    ("key", "given", "said"),
    [
        ("targets", {"targets": ["to_z"]}, "to_z"),
        ("blocks", {"blocks": ["mid_block"]}, "begin with blocks, out"),
        ("rank_pattern", {"rank_pattern": {"to_z": 3}}, "to_z"),
        ("alpha_pattern", {"alpha_pattern": {"re:.*z": 3.0}}, "re:"),
    ],
)
def test_a_key_that_matches_nothing_is_refused_by_name(key, given, said, toy):
    with pytest.raises(ConfigError, match=rf"adapter\.{key}") as caught:
        adapters.denoiser_adapter_spec(toy, AdapterConfig(**given), ["to_q", "out"])
    assert said in str(caught.value)


def test_a_network_without_convolutions_has_none_to_adapt():
    with pytest.raises(ConfigError, match=r"adapter\.conv_rank"):
        adapters.denoiser_adapter_spec(
            nn.Sequential(nn.Linear(2, 2)), AdapterConfig(conv_rank=2, targets=["0"]), []
        )


def test_rslora_divides_by_the_root_of_the_rank(toy):
    adapters.inject_adapter(toy, shape=shape("rslora"))
    assert toy.blocks[0].to_q.scaling["default"] == 6 / math.sqrt(4)
