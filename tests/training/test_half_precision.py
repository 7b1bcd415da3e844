"""Training in half precision without autocast: networks compute in it, the optimizer works in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorakit import adapters
from lorakit.adapters.targets import AdapterSpec
from lorakit.config.recipe import OptimizerConfig
from lorakit.core import storage
from lorakit.training import checkpoint, optimizers
from lorakit.training.flat_parameters import FlatParameters
from tests import runs, tiny
from tests.models.families.common import CAPTIONS, encode_all, family_of, noise_for, two_timesteps
from tests.training.test_flat_parameters import backward, named


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 4)


def halves(parameters: list[tuple[str, torch.nn.Parameter]], dtype: torch.dtype) -> FlatParameters:
    return FlatParameters(parameters, dtype_of=lambda parameter: dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_copies_are_rounded_values_and_steps_too_small_for_them_add_up(dtype):
    flat = named()
    parameters = halves(flat, dtype)
    optimizer = optimizers.build_optimizer(parameters, OptimizerConfig(name="adamw", lr=1e-5))
    before = parameters.values.clone()
    for number in range(3):
        for _ in range(2):  # two passes a step
            loss = sum((p.float() * torch.ones(p.shape)).sum() for _, p in flat)
            loss.backward()
            parameters.add_gradients()
        assert torch.equal(next(iter(parameters.gradient_views()))[1], torch.full(flat[0][1].shape, 2.0))
        optimizers.take_step(optimizer, parameters)
        parameters.zero_gradients()
        moved = (before - parameters.values).max()
        assert float(moved) == pytest.approx(1e-5 * (number + 1), rel=0.2)
    for (_, copy), (_, value) in zip(flat, parameters.named_views(parameters.values), strict=True):
        assert copy.dtype == dtype
        assert torch.equal(copy, value.to(dtype))


def test_what_is_saved_and_loaded_are_the_values_in_float32():
    flat = named()
    parameters = halves(flat, torch.bfloat16)
    exact = [value.clone() for _, value in parameters.named_views(parameters.values)]
    with parameters.in_full_precision():
        assert all(torch.equal(p, value) for (_, p), value in zip(flat, exact, strict=True))
        with torch.no_grad():
            flat[2][1].fill_(0.1)
    assert float(flat[2][1]) == float(torch.tensor(0.1).bfloat16())
    assert float(dict(parameters.named_views(parameters.values))["2.weight"]) == float(torch.tensor(0.1))


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion8bit", "lion"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_skipped_on_the_device_changes_no_byte_of_values_or_moments(name, bad):
    flat = named()
    parameters = FlatParameters(flat)
    optimizer = optimizers.build_optimizer(parameters, OptimizerConfig(name=name, lr=1e-2))
    assert optimizers.can_skip_on_device(optimizer)
    for number, value in enumerate([1.0, bad, 1.0]):
        backward(flat, number)
        parameters.add_gradients()
        parameters.gradients[5] *= value
        before = {"values": parameters.values.clone()} | _moments(optimizer)
        finite = torch.isfinite(parameters.clip_gradients(1.0))
        optimizers.take_step(optimizer, parameters, finite)
        parameters.zero_gradients()
        after = {"values": parameters.values} | _moments(optimizer)
        same = [torch.equal(before[key], after[key]) for key in before]
        assert all(same) if number == 1 else not same[0]


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    states = optimizer.state.values()
    return {key: value.clone() for state in states for key, value in state.items() if torch.is_tensor(value)}


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "lokr", "loha", "oft"])
@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_adapters_of_all_methods_have_about_the_gradients_of_float32(name, method):
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        family = family_of(name)
        pipe = family.load(tiny.tiny_folder(name), dtype=dtype, only={family.components.denoiser})
        model = family.denoiser(pipe)
        targets = [key for key, _ in model.named_modules() if key.endswith(("to_q", "to_v"))]
        adapters.inject_adapter(model, spec=AdapterSpec(method, 2, 2, tuple(targets)))
        dtypes = adapters.computed_dtypes(model, dtype)
        parameters = FlatParameters(adapters.trainable_parameters(model), dtype_of=dtypes.__getitem__)
        cond = family.collate(encode_all(name, tiny.tiny_pipeline(name), CAPTIONS[:1]))
        cond = {key: v.to(dtype) if v.is_floating_point() else v for key, v in cond.items()}
        prediction = family.predict(model, noise_for(name).to(dtype), two_timesteps(family)[:1], cond)
        assert prediction.dtype == dtype
        prediction.float().square().mean().backward()
        parameters.add_gradients()
        gradients[dtype] = parameters.gradients.clone()
    exact, rounded = gradients.values()
    assert exact.any()
    assert (rounded - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("base", ["sd15", "sd3-no-t5"])
def test_a_killed_run_in_bf16_is_resumed_to_the_same_bytes_of_float32(base, data, tmp_path):
    files = [
        runs.make_recipe(
            tmp_path / f"{name}.yaml",
            tiny.tiny_folder(base),
            data,
            tmp_path / name,
            train={"steps": 6, "batch_size": 1, "accumulate": 2, "save_every": 2, "precision": "bf16"},
        )
        for name in ("whole", "resumed")
    ]
    runs.train(files[0])
    with runs.killed_at(5):
        runs.train(files[1])
    runs.train(files[1])
    results = [tmp_path / name / "adapter.safetensors" for name in ("whole", "resumed")]
    assert results[0].read_bytes() == results[1].read_bytes()
    saved = checkpoint.load_checkpoint(checkpoint.step_folder(tmp_path / "whole", 6)).adapter
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    tensors = storage.read_safetensors(results[0]).values()
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors)
