"""Layers for the rows of several members: the same bits as each member's own layer."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lorakit.training.sweep.grouped_layers import AdaptedLayer
from lorakit.training.sweep.row_groups import BaseLayer, RowGroups, RowsNotSeparableError
from lorakit.training.sweep.shared_base import shared_copy


def members_of(base: nn.Module, ranks: list[int], **options: object) -> list[nn.Module]:
    """Shared copies of a network with one layer "layer", each with an adapter that has an effect."""
    members = []
    for rank in ranks:
        network = shared_copy(base)
        config = LoraConfig(r=rank, lora_alpha=3 * rank, target_modules=["layer"], **options)
        inject_adapter_in_model(config, network)
        nn.init.normal_(network.layer.lora_B["default"].weight)
        members.append(network)
    return members


def results(output: torch.Tensor, x: torch.Tensor, members: list[nn.Module]) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of each member's matrices."""
    parameters = [p for m in members for n, p in m.named_parameters() if "lora" in n]
    return [output, *torch.autograd.grad(output, [x, *parameters], output.detach().cos())]


@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 8, 16]])
@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("kind", ["linear", "dora", "conv"])
def test_each_members_rows_have_the_bits_of_its_own_layer(ranks, counts, kind):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 24, 3, padding=1) if kind == "conv" else nn.Linear(64, 96)
    base = nn.ModuleDict({"layer": layer}).requires_grad_(False)
    members = members_of(base, ranks, use_dora=kind == "dora")
    x = torch.randn(sum(counts), *((8, 12, 20) if kind == "conv" else (77, 64)), requires_grad=True)
    groups = RowGroups(counts, (0, 1, 2))
    joint = AdaptedLayer(shared_copy(base).layer, groups, {i: m.layer for i, m in enumerate(members)})
    together = results(joint(x), x, members)
    parts = [part.detach().requires_grad_() for part in x.split(list(counts))]
    for number, (member, part) in enumerate(zip(members, parts, strict=True)):
        output, gradient, *own = results(member.layer(part), part, [member])
        start = sum(counts[:number])
        assert torch.equal(together[0][start : start + counts[number]], output)
        assert torch.equal(together[1][start : start + counts[number]], gradient)
        size = len(own)
        for mine, theirs in zip(own, together[2 + size * number :], strict=False):
            assert torch.equal(mine, theirs)


def test_a_copy_shares_the_frozen_weights_and_has_adapters_of_its_own():
    base = nn.ModuleDict({"layer": nn.Linear(8, 8)})
    first, second = members_of(base, [2, 2])
    weight = base.layer.weight.data_ptr()
    assert first.layer.base_layer.weight.data_ptr() == second.layer.base_layer.weight.data_ptr() == weight
    assert not torch.equal(first.layer.lora_B["default"].weight, second.layer.lora_B["default"].weight)
    assert type(base.layer) is nn.Linear


def test_a_layer_whose_algorithm_depends_on_the_batch_computes_each_member_alone():
    class Batchwise(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1 + len(x) * 1e-6)

    layer = Batchwise(4, 4)
    groups, x = RowGroups((1, 2), (0, 1)), torch.randn(3, 4)
    expected = torch.cat([layer(x[:1]), layer(x[1:])])
    assert torch.equal(BaseLayer(layer, groups)(x), expected)
    assert not torch.equal(layer(x), expected)


def test_rows_that_belong_to_no_member_are_an_error():
    assert RowGroups((1, 2), (0, 1)).sizes(torch.zeros(6, 2)) == [2, 4]
    with pytest.raises(RowsNotSeparableError, match=r"\(5, 2\) cannot be divided into 3 images"):
        RowGroups((1, 2), (0, 1)).sizes(torch.zeros(5, 2))
