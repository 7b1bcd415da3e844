from __future__ import annotations

import pytest
import torch
from torch import nn

from lorakit import adapters
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.other = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.other(self.to_q(x) + self.to_k(x))


@pytest.fixture
def toy() -> Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Toy().eval()


X = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))


def perturb(model: nn.Module) -> None:
    for index, (_, parameter) in enumerate(adapters.trainable_parameters(model)):
        generator = torch.Generator().manual_seed(index)
        parameter.data = torch.randn(parameter.shape, generator=generator)


def test_a_new_adapter_has_no_effect_and_only_it_is_trained(toy):
    before = toy(X)
    adapters.inject_adapter(toy, rank=2, alpha=4, targets=["to_q", "to_k"])
    assert torch.equal(toy(X), before)
    assert adapters.count_trainable(toy) == adapters.AdapterSize(2, 2 * (2 * 6 + 8 * 2))
    trained = {id(p) for p in toy.parameters() if p.requires_grad}
    assert trained == {id(p) for _, p in adapters.trainable_parameters(toy)}


def test_initial_values_are_keyed_by_name_and_seed():
    states = []
    for seed, noise in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(noise)
        model = Toy()
        adapters.inject_adapter(model, rank=2, alpha=2, targets=["to_q"], seed=seed)
        states.append(adapters.adapter_state_dict({"unet": model}))
    key = "unet.to_q.lora_A.weight"
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])
    assert states[0][key].abs().max() <= 6**-0.5
    assert not states[0]["unet.to_q.lora_B.weight"].any()


def test_a_loaded_adapter_predicts_the_same_and_strength_scales_it(toy, tmp_path):
    plain = toy(X)
    adapters.inject_adapter(toy, rank=2, alpha=4, targets=["to_q", "to_k"])
    perturb(toy)
    metadata = {"rank": 2, "alpha": 4.0}
    file = storage.write_safetensors(
        tmp_path / "a.safetensors",
        adapters.adapter_state_dict({"unet": toy}),
        adapters.pack_metadata(metadata),
    )
    outputs = []
    for strength in (1.0, 0.5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = Toy().eval()
        assert adapters.load_adapter({"unet": fresh}, file, strength) == metadata
        outputs.append(fresh(X))
    assert torch.equal(outputs[0], toy(X))
    assert torch.allclose(outputs[1] - plain, (outputs[0] - plain) / 2, atol=1e-5)
    with adapters.adapters_disabled(toy):
        assert torch.equal(toy(X), plain)
    assert torch.equal(toy(X), outputs[0])


def test_an_adapter_of_another_base_model_is_refused_with_its_keys(toy):
    adapters.inject_adapter(toy, rank=2, alpha=2, targets=["to_q"])
    state = adapters.adapter_state_dict({"unet": toy})
    with pytest.raises(DataError, match=r"unet\.to_q\.lora_A\.weight"):
        adapters.load_adapter_state_dict({"unet": toy}, {k: v[:1] for k, v in state.items()}, "file")
    renamed = {key.replace("unet", "transformer"): tensor for key, tensor in state.items()}
    with pytest.raises(DataError, match="transformer"):
        adapters.load_adapter_state_dict({"unet": toy}, renamed, "file")


def test_targets_that_match_nothing_are_refused(toy):
    with pytest.raises(ConfigError, match=r"adapter\.targets"):
        adapters.inject_adapter(toy, rank=2, alpha=2, targets=["to_z"])


def test_a_file_that_lorakit_did_not_write_is_refused(tmp_path):
    file = storage.write_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    with pytest.raises(ConfigError, match="lorakit did not write this adapter"):
        adapters.read_adapter_metadata(file)
