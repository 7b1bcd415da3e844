"""Linear layers in 4 and 8 bits: results and input gradients, wherever the tensors are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.models.memory import quantized_layers
from lorakit.models.memory.quantized_layers import LAYERS, QuantizedLinear, quantized_layer

ERRORS = {"nf4": 0.12, "int8": 0.015, "fp8": 0.05}
"""Relative errors of products with normal weights: the steps of the formats."""


def make_linear(inputs: int = 128, outputs: int = 192, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def make_layer(kind: str, linear: nn.Linear, dtype: torch.dtype, *, products: bool | None = None):
    layer = quantized_layer(linear, kind, dtype, "cpu")
    layer.has_products = layer.has_products if products is None else products
    return layer


def outputs(layer: nn.Module, value: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result of a layer, and the gradient of the input for random gradients of the result."""
    value = value.detach().requires_grad_()
    result = layer(value)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad(result, value, weights.to(result.dtype))
    return result.detach(), gradient


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value.float() - exact).norm() / exact.norm())


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("kind", "products"), [("nf4", False), ("int8", True), ("int8", False), ("fp8", True), ("fp8", False)]
)
@pytest.mark.parametrize("shape", [(3, 40, 128), (1, 128)])
def test_results_and_input_gradients_are_exact_up_to_the_format(kind, products, dtype, shape):
    linear = make_linear()
    value = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    layer = make_layer(kind, linear, dtype, products=products)
    result, gradient = outputs(layer, value.to(dtype))
    exact, exact_gradient = outputs(linear, value)
    assert result.dtype == gradient.dtype == dtype
    assert 1e-4 < error(result, exact) < ERRORS[kind]
    assert 1e-4 < error(gradient, exact_gradient) < ERRORS[kind]


def test_int8_multiplies_integers_forward_and_backward_without_a_synchronization():
    layer = make_layer("int8", make_linear(), torch.bfloat16)
    with Operators() as operators:
        outputs(layer, torch.randn(2, 5, 128, dtype=torch.bfloat16))
    assert operators.names.count("_int_mm.default") == 2
    others = {name.partition(".")[0] for name in operators.names}
    assert not others & {"mm", "addmm", "matmul", "_local_scalar_dense", "item", "nonzero", "_to_cpu"}


@pytest.mark.parametrize(
    ("inputs", "count", "kind"), [(100, 192, "int8"), (128, 100, "int8"), (120, 64, "fp8")]
)
def test_sizes_that_kernels_do_not_multiply_are_computed_from_the_weight(inputs, count, kind):
    linear = make_linear(inputs, count)
    layer = make_layer(kind, linear, torch.bfloat16)
    assert not layer.has_products
    value = torch.randn(7, inputs)
    assert error(layer(value.bfloat16()), linear(value)) < ERRORS[kind]


@pytest.mark.parametrize("kind", LAYERS)
def test_the_codes_do_not_depend_on_how_many_rows_are_encoded_at_once(kind, monkeypatch):
    weight = make_linear(256, 200).weight
    whole = LAYERS[kind].encode(weight)
    monkeypatch.setattr(quantized_layers, "_ENCODED_AT_ONCE", 1024)
    parts = LAYERS[kind].encode(weight)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    shapes = LAYERS[kind].code_shapes(200, 256)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in whole.items()} == shapes


def test_nf4_has_the_codes_of_bitsandbytes():
    from bitsandbytes.functional import quantize_4bit

    weight = make_linear(512, 200).weight
    codes, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    own = LAYERS["nf4"].encode(weight)
    expected = (codes, state.absmax, state.state2.absmax, state.state2.code, state.offset)
    assert all(map(torch.equal, own.values(), expected))


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_may_be_moved_between_the_forward_and_the_backward_pass(kind):
    """Streaming replaces the data of all tensors; the gradient reads what is there then."""
    layer, value = make_layer(kind, make_linear(), torch.float32), torch.randn(4, 128)
    _, expected = outputs(layer, value)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert len(tensors) == len(layer.code_names) + 1  # the bias
    homes = [tensor.data for tensor in tensors]
    value.requires_grad_()
    result = layer(value)
    for tensor in tensors:
        tensor.data = torch.empty(0, dtype=tensor.dtype)
    for tensor, home in zip(tensors, homes, strict=True):
        tensor.data = home.clone()
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.autograd.grad(result, value, weights)[0], expected)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double, lambda m: m.to(torch.bfloat16)])
def test_conversions_of_the_network_leave_codes_and_scales_alone(kind, convert):
    layer = make_layer(kind, make_linear(), torch.float32)
    network = convert(nn.Sequential(copy.deepcopy(layer)))
    before, after = layer.state_dict(), network[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_saves_its_weights_and_no_activation(kind):
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.untyped_storage().data_ptr())
        return tensor

    layer = make_layer(kind, make_linear(bias=False), torch.bfloat16)
    own = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(3, 128, dtype=torch.bfloat16, requires_grad=True))
    assert saved
    assert set(saved) <= own


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_are_compiled_in_one_graph(kind):
    layer, value = make_layer(kind, make_linear(), torch.float32), torch.randn(4, 128)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, outputs(compiled, value), outputs(layer, value)))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_do_not_vanish(kind, bad):
    layer = make_layer(kind, make_linear(), torch.bfloat16, products=kind == "int8")
    value = torch.randn(3, 128, dtype=torch.bfloat16)
    value[1, 7] = bad
    assert layer(value).isfinite().all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_of_zeros_stay_zeros(kind):
    linear = make_linear(bias=False)
    linear.weight[:64] = 0
    layer = make_layer(kind, linear, torch.float32)
    assert not layer(torch.zeros(2, 128)).any()
    assert layer(torch.randn(2, 128))[:, :64].abs().max() < 1e-6


def test_inside_autocast_the_result_has_its_type():
    layer = make_layer("int8", make_linear(), torch.bfloat16)
    value = torch.randn(2, 128)
    assert layer(value).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(value).dtype == torch.bfloat16


def test_peft_reads_the_weight_that_the_codes_stand_for():
    from peft.utils.integrations import dequantize_module_weight

    linear = make_linear()
    for kind in LAYERS:
        layer = make_layer(kind, linear, torch.float32)
        assert isinstance(layer, QuantizedLinear)
        assert error(dequantize_module_weight(layer), linear.weight) < ERRORS[kind]
