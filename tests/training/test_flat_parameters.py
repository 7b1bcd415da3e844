"""Parameters in one buffer: the same numbers as one call for each tensor."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.config.recipe import OptimizerConfig
from lorakit.training import optimizer_state, optimizers
from lorakit.training.flat_parameters import FlatParameters

SHAPES = [(4, 300), (96, 4), (1,), (256,), (16, 16, 3, 3), (7, 5), (513,)]


def named(seed: int = 0) -> list[tuple[str, torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (f"{index}.weight", torch.nn.Parameter(torch.randn(shape, generator=generator)))
        for index, shape in enumerate(SHAPES)
    ]


def backward(parameters: list[tuple[str, torch.nn.Parameter]], number: int) -> None:
    """Add gradients of a loss that needs every parameter."""
    generator = torch.Generator().manual_seed(number)
    loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for _, p in parameters)
    loss.backward()


def reference_optimizer(name: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 1e-2}
    if name == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **settings, min_8bit_size=1)


@pytest.mark.parametrize(("name", "tolerance"), [("adamw8bit", 0.0), ("adamw", 1e-6)])
def test_steps_equal_those_of_separate_tensors(name, tolerance):
    """Two backward passes a step, clipped; 8 bits equal to the bit, as no block holds two parameters."""
    flat, separate = named(), named()
    parameters = FlatParameters(flat)
    config = OptimizerConfig(name=name, lr=1e-2, weight_decay=1e-2)
    optimizer, reference = (
        optimizers.build_optimizer(parameters, config),
        reference_optimizer(name, [p for _, p in separate]),
    )
    for step in range(5):
        for number in (2 * step, 2 * step + 1):
            backward(flat, number)
            backward(separate, number)
            parameters.add_gradients()
        gradients = torch.cat([p.grad.flatten() for _, p in separate])
        norm = parameters.clip_gradients(1e9)
        assert norm == pytest.approx(float(gradients.norm()), rel=1e-6)
        optimizers.take_step(optimizer, parameters)
        reference.step()
        parameters.zero_gradients()
        reference.zero_grad()
    for (_, ours), (_, theirs) in zip(flat, separate, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)
    assert not torch.equal(flat[0][1], named()[0][1])


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_clipping_limits_the_norm_of_all_gradients_together(limit):
    flat = named()
    parameters = FlatParameters(flat)
    backward(flat, 0)
    parameters.add_gradients()
    before = parameters.gradients.clone()
    norm = parameters.clip_gradients(limit, scale=2.0)
    assert norm == pytest.approx(float((before / 2).norm()), rel=1e-6)
    assert float(parameters.gradients.norm()) == pytest.approx(min(limit, float(norm)), rel=1e-5)


def test_the_buffer_follows_changes_of_the_parameters_and_the_other_way_round():
    flat = named()
    parameters = FlatParameters(flat)
    with torch.no_grad():
        flat[4][1].fill_(3.0)
    assert int((parameters.values == 3.0).sum()) == flat[4][1].numel()
    parameters.values.zero_()
    assert not any(p.any() for _, p in flat)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_network_without_gradients_is_not_updated(name):
    """The expert of other timesteps: neither its values nor its moments change."""
    flat = named()
    parameters = FlatParameters(flat, network_of=lambda key: "first" if key < "3" else "second")
    optimizer = optimizers.build_optimizer(parameters, OptimizerConfig(name=name, weight_decay=0.1))
    before = {key: p.detach().clone() for key, p in flat}
    backward(flat[3:], 0)
    parameters.add_gradients()
    optimizers.take_step(optimizer, parameters)
    changed = [key for key, p in flat if not torch.equal(p, before[key])]
    assert changed == [key for key, _ in flat[3:]]
    state = optimizer_state.optimizer_state_dict(optimizer, parameters)
    assert {key.partition("|")[0] for key in state} == set(changed)


def test_a_backward_pass_that_was_not_finished_leaves_no_gradient():
    flat = named()
    parameters = FlatParameters(flat)
    backward(flat, 0)
    parameters.zero_gradients()
    assert all(p.grad is None for _, p in flat)
    backward(flat[:2], 1)
    parameters.add_gradients()
    views = dict(parameters.gradient_views())
    assert [bool(view.any()) for view in views.values()] == [True, True] + [False] * 5


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_restored_state_goes_on_bit_for_bit_for_many_steps(name):
    """Also the elements behind each parameter, which share the scale of its last block."""
    runs = [named(), named()]
    config = OptimizerConfig(name=name, lr=1e-2)
    flats = [FlatParameters(parameters) for parameters in runs]
    built = [optimizers.build_optimizer(flat, config) for flat in flats]
    for step in range(40):
        scale = 0.5**step  # moments that shrink
        for parameters, flat, optimizer in zip(runs, flats, built, strict=True):
            backward(parameters, step)
            flat.add_gradients()
            flat.gradients.mul_(scale)
            optimizers.take_step(optimizer, flat)
            flat.zero_gradients()
        if step == 3:  # only the second one is restored
            state = optimizer_state.optimizer_state_dict(built[1], flats[1])
            built[1] = optimizers.build_optimizer(flats[1], config)
            optimizer_state.load_optimizer_state_dict(built[1], flats[1], state)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*runs, strict=True))
    states = [optimizer_state.optimizer_state_dict(*pair) for pair in zip(built, flats, strict=True)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_tensors_of_their_own_keep_their_shapes():
    """For optimizers that need matrices."""
    flat = named()
    parameters = FlatParameters(flat, per_tensor=True)
    assert [tuple(tensor.values.shape) for tensor in parameters.tensors] == SHAPES
    backward(flat, 0)
    parameters.add_gradients()
    parameters.attach_gradients()
    for tensor, (_, parameter) in zip(parameters.tensors, flat, strict=True):
        assert tensor.values.grad.shape == parameter.shape
        with torch.no_grad():
            tensor.values.add_(tensor.values.grad)
        assert torch.equal(parameter, tensor.values)


class CallCounter(TorchDispatchMode):
    """Counts operators, and those that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_step_is_a_few_calls_whatever_the_number_of_tensors(name):
    counts = []
    for repeats in (1, 20):
        flat = [(f"{copy}.{key}", p) for copy in range(repeats) for key, p in named(copy)]
        parameters = FlatParameters(flat)
        optimizer = optimizers.build_optimizer(parameters, OptimizerConfig(name=name))
        for number in range(2):
            backward(flat, number)
            with CallCounter() as counter:
                parameters.add_gradients()
                parameters.clip_gradients(1.0)
                optimizers.take_step(optimizer, parameters)
                parameters.zero_gradients()
        counts.append(len([call for call in counter.names if "detach" not in call]))
        waits = [call for call in counter.names if "_local_scalar_dense" in call or "_to_copy" in call]
        assert not waits
    assert counts[0] == counts[1] <= 12
