"""Every adapter method: no effect at first, gradients everywhere, the same after loading its file."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lorakit import adapters
from lorakit.adapters import AdapterSpec, formats, target_patterns, targets
from lorakit.config.recipe import AdapterConfig
from lorakit.core import storage
from lorakit.core.errors import ConfigError

METHODS = ["lora", "rslora", "dora", "lokr", "loha", "oft"]
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


def adapter_spec(method: str, *, rank: int = 4, alpha: float = 6, init: str = "kaiming") -> AdapterSpec:
    modules = (LINEAR,) if method == "oft" else (CONVOLUTION, LINEAR)
    return AdapterSpec(method, rank, 16 if method == "oft" else alpha, modules, init)


def perturb(model: nn.Module) -> None:
    for index, (_, parameter) in enumerate(adapters.trainable_parameters(model)):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.data = parameter.data + 0.3 * noise


def save(network: nn.Module, spec: AdapterSpec, path) -> None:
    metadata = spec.metadata("unet") | {"family": "sd15", "base_hash": ""}
    tensors = adapters.adapter_state_dict({"unet": network})
    storage.write_safetensors(path, tensors, adapters.pack_metadata(metadata))


@pytest.mark.parametrize("method", METHODS)
def test_a_new_adapter_has_no_effect_and_keyed_values_and_only_it_is_trained(method, toy):
    before, other = toy(X), copy.deepcopy(toy)
    adapters.inject_adapter(toy, spec=adapter_spec(method), seed=3)
    assert (toy(X) - before).abs().max() <= 1e-6
    trained = {id(p) for p in toy.parameters() if p.requires_grad}
    assert trained == {id(p) for _, p in adapters.trainable_parameters(toy)}
    torch.manual_seed(99)
    adapters.inject_adapter(other, spec=adapter_spec(method), seed=3)
    one, two = adapters.adapter_state_dict({"unet": toy}), adapters.adapter_state_dict({"unet": other})
    assert all(torch.equal(one[key], two[key]) for key in one.keys() | two.keys())
    num_modules = len(adapter_spec(method).target_modules)
    size = adapters.AdapterSize(num_modules, sum(tensor.numel() for tensor in one.values()))
    assert adapters.count_trainable(toy) == size


@pytest.mark.parametrize("method", METHODS)
def test_some_parameters_have_a_gradient_at_first_and_all_later(method, toy):
    adapters.inject_adapter(toy, spec=adapter_spec(method))
    toy(X).square().sum().backward()
    assert any(p.grad.any() for _, p in adapters.trainable_parameters(toy))
    perturb(toy)
    toy.zero_grad()
    toy(X).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for _, p in adapters.trainable_parameters(toy))


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_adapter_equals_the_saved_one_and_strength_scales_it(method, toy, tmp_path):
    fresh, plain = copy.deepcopy(toy), toy(X)
    adapters.inject_adapter(toy, spec=adapter_spec(method))
    perturb(toy)
    save(toy, adapter_spec(method), tmp_path / "a.safetensors")
    adapters.load_adapter({"unet": fresh}, tmp_path / "a.safetensors")
    assert torch.equal(fresh(X), toy(X))
    assert (fresh(X) - plain).abs().max() > 1e-2
    inner = fresh.blocks[0].to_q
    inputs = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    base, adapted = inner.base_layer(inputs), inner(inputs)
    for strength in (0.5, 0.0, 1.0):
        adapters.set_adapter_strength(fresh, strength)
        assert torch.allclose(inner(inputs) - base, strength * (adapted - base), atol=1e-5)
    with adapters.adapters_disabled(fresh):
        assert torch.equal(fresh(X), plain)
    assert torch.equal(fresh(X), toy(X))


@pytest.mark.parametrize("method", METHODS)
def test_the_delta_weights_of_a_file_are_those_of_training(method, toy, tmp_path):
    plain = copy.deepcopy(toy)
    adapters.inject_adapter(toy, spec=adapter_spec(method))
    perturb(toy)
    save(toy, adapter_spec(method), tmp_path / "a.safetensors")
    read = formats.read_adapter_file(tmp_path / "a.safetensors")
    assert len(read.deltas) == len(adapter_spec(method).target_modules)
    for name, delta in read.deltas.items():
        module = toy.get_submodule(name.removeprefix("unet."))
        base = plain.get_submodule(name.removeprefix("unet.")).weight
        module.merge()
        expected = module.base_layer.weight - base
        actual = delta.dense(base).reshape(base.shape)
        assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_pissa_and_olora_are_stored_relative_to_the_base_weight(init, method, toy, tmp_path):
    fresh, plain, weight = copy.deepcopy(toy), toy(X), toy.blocks[0].to_q.weight.clone()
    spec = adapter_spec(method, init=init)
    adapters.inject_adapter(toy, spec=spec)
    assert torch.allclose(toy(X), plain, atol=1e-5)
    layer = toy.blocks[0].to_q
    assert torch.equal(layer.base_layer.weight, weight)
    scale = 6 / (2 if method == "rslora" else 4)
    assert layer.scaling["default"] == scale
    part = scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    if init == "pissa":  # the small singular values remain
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
    save(toy, spec, tmp_path / "a.safetensors")
    assert adapters.load_adapter({"unet": fresh}, tmp_path / "a.safetensors")["rank"] == 8
    assert torch.allclose(fresh(X), toy(X), atol=1e-5)
    back = copy.deepcopy(toy)
    perturb(back)
    adapters.load_adapter_state_dict({"unet": back}, adapters.adapter_state_dict({"unet": toy}), "file")
    assert torch.equal(back(X), toy(X))


def test_a_rank_larger_than_the_weight_is_refused_with_pissa(toy):
    with pytest.raises(ConfigError, match="at most 8"):
        adapters.inject_adapter(toy, spec=adapter_spec("lora", rank=9, init="pissa"))


def test_gaussian_init_has_the_standard_deviation_of_one_over_the_rank(toy):
    adapters.inject_adapter(toy, spec=AdapterSpec("lora", 50, 1, (CONVOLUTION,), "gaussian"))
    values = dict(adapters.trainable_parameters(toy))[f"{CONVOLUTION}.lora_A.weight"]
    assert float(values.detach().std()) == pytest.approx(1 / 50, rel=0.1)


def test_oft_refuses_convolutions_and_blocks_that_do_not_divide_the_inputs(toy):
    with pytest.raises(ConfigError, match="is a convolution"):
        adapters.inject_adapter(toy, spec=AdapterSpec("oft", 4, 16, (CONVOLUTION,)))
    with pytest.raises(ConfigError, match=r"blocks of 3 .* 8 inputs of blocks\.0\.to_q"):
        adapters.inject_adapter(toy, spec=AdapterSpec("oft", 3, 16, (LINEAR,)))


def test_ranks_and_alphas_by_pattern_are_saved_and_loaded(toy, tmp_path):
    settings = AdapterConfig(
        rank=2, alpha=4, conv_rank=3, rank_pattern={"to_q": 5, "re:.*q": 7}, alpha_pattern={"to_q": 1.5}
    )
    spec = adapters.denoiser_adapter_spec(toy, settings, ["to_q", "out"])
    assert (spec.rank_pattern, spec.alpha_pattern) == (
        {CONVOLUTION: 3, LINEAR: 5},
        {CONVOLUTION: 6.0, LINEAR: 1.5},
    )
    fresh = copy.deepcopy(toy)
    adapters.inject_adapter(toy, spec=spec)
    assert {n: len(p) for n, p in adapters.trainable_parameters(toy) if "lora_A" in n} == {
        f"{CONVOLUTION}.lora_A.weight": 3,
        f"{LINEAR}.lora_A.weight": 5,
        "out.lora_A.weight": 2,
    }
    perturb(toy)
    save(toy, spec, tmp_path / "a.safetensors")
    adapters.load_adapter({"unet": fresh}, tmp_path / "a.safetensors")
    assert torch.equal(fresh(X), toy(X))
    for name, delta in formats.read_adapter_file(tmp_path / "a.safetensors").deltas.items():
        expected = toy.get_submodule(name.removeprefix("unet.")).get_delta_weight("default")
        assert torch.allclose(delta.dense(), expected, atol=1e-6)


def test_modules_are_selected_by_ending_regular_expression_and_block(toy):
    assert targets.find_target_modules(toy, ["q"]) == []
    assert targets.find_target_modules(toy, ["to_q", r"re:blocks\.\d+\.conv\d"]) == [CONVOLUTION, LINEAR]
    assert targets.find_target_modules(toy, r".*(to_q|out)") == [LINEAR, "out"]
    only = adapters.denoiser_adapter_spec(toy, AdapterConfig(targets=["to_q"], blocks=["blocks.0"]), ["out"])
    assert only.target_modules == (LINEAR,)
    for block, name, inside in [
        ("mid_block", "mid_block.attentions.0.to_q", True),
        ("mid", "mid_block.attentions.0.to_q", False),
        ("down_blocks.1", "down_blocks.1.to_q", True),
        ("down_blocks.1", "down_blocks.11.to_q", False),
        ("blocks.2-4", "blocks.4.to_q", True),
        ("blocks.2-4", "blocks.5.to_q", False),
    ]:
        assert target_patterns.Block.parse(block).contains(name) is inside


@pytest.mark.parametrize(
    ("key", "settings", "text"),
    [
        ("targets", {"targets": ["to_z"]}, "to_z"),
        ("blocks", {"blocks": ["mid_block"]}, "start with blocks, out"),
        ("rank_pattern", {"rank_pattern": {"to_z": 3}}, "to_z"),
        ("alpha_pattern", {"alpha_pattern": {"re:.*z": 3.0}}, "re:"),
    ],
)
def test_a_key_that_matches_nothing_is_refused_by_name(key, settings, text, toy):
    with pytest.raises(ConfigError, match=rf"adapter\.{key}") as caught:
        adapters.denoiser_adapter_spec(toy, AdapterConfig(**settings), ["to_q", "out"])
    assert text in str(caught.value)


def test_conv_rank_without_convolutions_is_refused():
    with pytest.raises(ConfigError, match=r"adapter\.conv_rank"):
        adapters.denoiser_adapter_spec(
            nn.Sequential(nn.Linear(2, 2)), AdapterConfig(conv_rank=2, targets=["0"]), []
        )


def test_rslora_divides_by_the_root_of_the_rank(toy):
    adapters.inject_adapter(toy, spec=adapter_spec("rslora"))
    assert toy.blocks[0].to_q.scaling["default"] == 6 / math.sqrt(4)
