from __future__ import annotations

import functools
import math
import re
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from lorakit.adapters import text_encoders
from lorakit.config.optimizer_names import OPTIMIZER_NAMES
from lorakit.config.recipe import OptimizerConfig, Recipe, TrainConfig
from lorakit.core.errors import ConfigError, DataError
from lorakit.training import optimizer_classes, optimizer_state, optimizers, schedules
from lorakit.training.averaged_weights import AveragedWeights, is_average_key
from lorakit.training.flat_parameters import FlatParameters


def named_parameters(seed: int = 0) -> list[tuple[str, torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.lora_A.weight": (4, 300), "a.lora_B.weight": (96, 4)}
    return [
        (name, torch.nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in shapes.items()
    ]


def parameters(seed: int = 0) -> FlatParameters:
    return FlatParameters(named_parameters(seed))


def step(optimizer, values, number):
    for index, (_, parameter) in enumerate(values.named):
        generator = torch.Generator().manual_seed(100 * number + index)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    values.add_gradients()
    optimizers.take_step(optimizer, values)
    values.zero_gradients()


ON_CPU = [name for name in OPTIMIZER_NAMES if not name.startswith("paged_")]
RATES = {"prodigy": 1.0}


def mixed_parameters(settings: OptimizerConfig, seed: int = 0) -> FlatParameters:
    """Matrices, a vector and a convolution, as adapters have them."""
    shapes = {"a.lora_A.weight": (4, 300), "a.lora_B.weight": (96, 4), "a.magnitude": (7,), "c": (4, 3, 3, 3)}
    generator = torch.Generator().manual_seed(seed)
    named = [
        (name, torch.nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in shapes.items()
    ]
    per_tensor = settings.name not in optimizer_classes.ELEMENTWISE
    return FlatParameters(named, lr_multiplier=optimizers.lr_multiplier(settings), per_tensor=per_tensor)


class Listed(torch.optim.SGD):
    """An optimizer with a list of tensors and numbers that are no tensors in its state."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0.0) + 0.1
            for parameter in group["params"]:
                state = self.state[parameter]
                state["limit"], state["kind"], state["unused"] = math.inf, "sgd", None
                strided = torch.stack([parameter.grad, parameter.grad], -1)[..., 0]
                state["last"] = [*state.get("last", []), strided][-2:]
                parameter.data.sub_(sum(state["last"]) * group["count"] * group["lr"])


LISTED = f"{__name__}.Listed"


def equal_weights(first: FlatParameters, second: FlatParameters) -> bool:
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(first.named, second.named, strict=True))


def run_steps(optimizer, values, averages, numbers):
    for number in numbers:
        step(optimizer, values, number)
        averages.update()


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("name", [*ON_CPU, "torch.optim.NAdam", "schedulefree.RAdamScheduleFree", LISTED])
def test_a_restored_optimizer_goes_on_bit_for_bit(name, ema_decay):
    """The whole state passes through the bytes of a file; looking at the averages changes nothing."""
    settings = OptimizerConfig(name=name, lr=RATES.get(name, 1e-2))
    straight, resumed = mixed_parameters(settings), mixed_parameters(settings, seed=9)
    optimizer, other = (optimizers.build_optimizer(values, settings) for values in (straight, resumed))
    averages = AveragedWeights(straight, optimizer, ema_decay)
    before = straight.values.clone()
    run_steps(optimizer, straight, averages, range(8))
    assert not torch.equal(straight.values, before)
    state = optimizer_state.optimizer_state_dict(optimizer, straight) | averages.state_dict()
    state = safetensors.torch.load(safetensors.torch.save(state))
    with averages.applied():
        pass
    resumed.values.copy_(straight.values)
    own = {key: value for key, value in state.items() if not is_average_key(key)}
    optimizer_state.load_optimizer_state_dict(other, resumed, own)
    restored = AveragedWeights(resumed, other, ema_decay)
    restored.load_state_dict(state)
    again = optimizer_state.optimizer_state_dict(other, resumed) | restored.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], state[k]) and again[k].dtype == state[k].dtype for k in state)
    for values, one, average in ((straight, optimizer, averages), (resumed, other, restored)):
        run_steps(one, values, average, range(8, 12))
    assert equal_weights(straight, resumed)
    with averages.applied(), restored.applied():
        assert equal_weights(straight, resumed)


@pytest.mark.parametrize("name", ON_CPU)
def test_every_named_optimizer_lowers_a_loss(name):
    """Gradients of a quadratic, through the same buffers as in a run."""
    lr = {"prodigy": 1.0, "adafactor": 3e-2, "came": 3e-2, "muon": 5e-2, "schedulefree_adamw": 5e-2}
    settings = OptimizerConfig(name=name, lr=lr.get(name, 1e-2), weight_decay=0.0)
    values = mixed_parameters(settings)
    optimizer = optimizers.build_optimizer(values, settings)
    averages = AveragedWeights(values, optimizer, None)
    start = sum(parameter.square().sum() for _, parameter in values.named)
    for _ in range(150):
        for _, parameter in values.named:
            parameter.grad = parameter.detach().clone()
        values.add_gradients()
        optimizers.take_step(optimizer, values)
        values.zero_gradients()
    with averages.applied():
        assert sum(parameter.square().sum() for _, parameter in values.named) < 0.5 * start


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("lion8bit", {"state1": torch.uint8}),
        ("ademamix8bit", {"state1": torch.uint8, "state2": torch.uint8}),
        ("muon", {"momentum_buffer": torch.float32}),
        ("adafactor", {"exp_avg_sq_row": torch.float32}),
        ("came", {"exp_avg_res_row": torch.float32}),
        ("prodigy", {"p0": torch.float32}),
        ("schedulefree_adamw", {"z": torch.float32}),
    ],
)
def test_the_state_is_that_of_the_method(name, entries):
    settings = OptimizerConfig(name=name)
    values = mixed_parameters(settings)
    optimizer = optimizers.build_optimizer(values, settings)
    run_steps(optimizer, values, AveragedWeights(values, optimizer, None), range(1))
    state = optimizer_state.optimizer_state_dict(optimizer, values)
    assert {entry: state[f"a.lora_A.weight|{entry}"].dtype for entry in entries} == entries
    if name == "muon":  # which is for matrices: the others have the moments of adamw
        assert {"a.magnitude|exp_avg", "c|exp_avg", "a.lora_B.weight|momentum_buffer"} <= state.keys()
        assert "a.magnitude|momentum_buffer" not in state


class Forgetful(torch.optim.SGD):
    """An optimizer with a state outside of its state."""

    calls = 0

    def step(self, closure=None):
        self.calls += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.calls
        return super().step()


class Unsaved(torch.optim.SGD):
    """An optimizer with an object in its state."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["generator"] = torch.Generator()
        return super().step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": f"{__name__}.Forgetful"}, "takes other steps after its state is saved and restored"),
        ({"name": f"{__name__}.Unsaved"}, "keeps a Generator in its state"),
        ({"name": "torch.optim.LBFGS"}, "cannot take a step of this training"),
        ({"name": "torch.optim.Nothing"}, "cannot be loaded"),
        ({"name": "no_such_package.Adam"}, "pip install no_such_package"),
        ({"name": "torch.nn.Linear"}, "is not an optimizer of torch"),
        ({"name": "paged_lion8bit"}, "optimizer.name=lion8bit"),
        ({"options": {"epsilon": 1e-6}}, "no argument 'epsilon'"),
        ({"name": "muon", "options": {"adjust_lr_fn": "none"}}, "refuses its arguments"),
        ({"name": "prodigy", "options": {"d_coeff": 2}}, "did you mean 'd_coef'?"),
    ],
)
def test_what_cannot_be_resumed_exactly_or_built_is_refused_with_the_reason(settings, message):
    config = OptimizerConfig(**settings)
    with pytest.raises(ConfigError) as caught:
        optimizers.build_optimizer(mixed_parameters(config), config)
    assert message in str(caught.value)


def test_options_and_betas_reach_the_class():
    config = OptimizerConfig(
        name="prodigy", betas=(0.8, 0.9), options={"d_coef": 2, "safeguard_warmup": True}
    )
    optimizer = optimizers.build_optimizer(mixed_parameters(config), config)
    assert {key: optimizer.defaults[key] for key in ("betas", "d_coef", "safeguard_warmup")} == {
        "betas": (0.8, 0.9),
        "d_coef": 2,
        "safeguard_warmup": True,
    }


def test_the_average_is_what_is_looked_at_and_never_what_is_trained():
    settings = OptimizerConfig(name="adamw", lr=0.1)
    values = mixed_parameters(settings)
    optimizer = optimizers.build_optimizer(values, settings)
    averages, seen = AveragedWeights(values, optimizer, 0.5), []
    for number in range(4):
        step(optimizer, values, number)
        averages.update()
        seen.append(values.values.clone())
    trained = values.values.clone()
    expected = seen[0]  # diffusers starts its average at the first step
    for number, weights in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + number) / (10 + number))
        expected = expected * decay + weights * (1 - decay)
    with averages.applied():
        assert torch.allclose(values.values, expected, atol=1e-6)
        assert not torch.equal(values.values, trained)
    assert torch.equal(values.values, trained)


def test_small_tensors_are_in_8_bits_too():
    values = parameters()
    optimizer = optimizers.build_optimizer(values, OptimizerConfig())
    step(optimizer, values, 0)
    state = optimizer_state.optimizer_state_dict(optimizer, values)
    assert {state[f"{n}|state{i}"].dtype for n, _ in values.named for i in (1, 2)} == {torch.uint8}


def test_a_state_of_another_adapter_is_refused():
    values = parameters()
    optimizer = optimizers.build_optimizer(values, OptimizerConfig())
    step(optimizer, values, 0)
    state = optimizer_state.optimizer_state_dict(optimizer, values)
    renamed = FlatParameters([(name.replace("a.", "b."), p) for name, p in values.named])
    with pytest.raises(DataError, match="another adapter"):
        optimizer_state.load_optimizer_state_dict(
            optimizers.build_optimizer(renamed, OptimizerConfig()), renamed, state
        )
    smaller = FlatParameters([(name, torch.nn.Parameter(p[:2].detach())) for name, p in values.named])
    with pytest.raises(DataError, match="the parameter needs"):
        optimizer_state.load_optimizer_state_dict(
            optimizers.build_optimizer(smaller, OptimizerConfig()), smaller, state
        )


def rate(number: int, **settings: Any) -> float:
    return schedules.learning_rate(number, range(100), OptimizerConfig(lr=2.0, **settings))


def test_schedules():
    assert [rate(k) for k in (0, 50, 99)] == [2, 2, 2]
    assert [rate(k, warmup=4) for k in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rate(50, schedule="linear") == pytest.approx(1.0)
    assert rate(25, schedule="cosine") == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(99, schedule="cosine", warmup=10) < 0.01
    assert rate(50, schedule="polynomial") == pytest.approx(0.5)
    assert rate(50, schedule="polynomial", power=1.0) == pytest.approx(1.0)
    assert rate(50, schedule="rex") == pytest.approx(2 * 0.5 / 0.75)


@pytest.mark.parametrize("cycles", [2, 5])
def test_restarts_repeat_the_same_fall(cycles):
    keys = {"schedule": "cosine_restarts", "cycles": cycles}
    length = 100 // cycles
    rates = [rate(number, **keys) for number in range(100)]
    assert rates[:length] == pytest.approx(rates[length : 2 * length])
    assert rates.index(min(rates)) % length == length - 1
    assert rates[length] == 2.0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "polynomial", "rex", "cosine_restarts"])
def test_a_minimum_rate_is_where_a_schedule_ends(schedule):
    rates = [rate(number, schedule=schedule, min_lr_ratio=0.1) for number in range(100)]
    assert rates[0] == 2.0
    assert 0.2 <= min(rates) < 0.3
    assert rates[-1] == min(rates)


def test_a_warmup_below_one_is_a_share_of_the_steps():
    assert [rate(number, warmup=0.05) for number in range(6)] == [rate(n, warmup=5) for n in range(6)]
    assert rate(0, warmup=0.001) == 2.0
    assert OptimizerConfig(warmup=1).warmup == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycles": 3}, "for schedule: cosine_restarts"),
        ({"power": 3.0, "schedule": "cosine"}, "for schedule: polynomial"),
        ({"min_lr_ratio": 0.1}, "for a schedule that falls"),
        ({"name": "schedulefree_adamw", "schedule": "cosine"}, "leave out optimizer.schedule"),
        ({"name": "prodigy", "loraplus_lr_ratio": 4.0}, "leave out optimizer.loraplus_lr_ratio"),
        ({"name": "AdamW8bit"}, "did you mean 'adamw8bit'?"),
        ({"name": "Lion-8bit"}, "did you mean 'lion8bit'?"),
        ({"options": {"lr": 1.0}}, "write optimizer.lr"),
        ({"name": "adamw", "betas": [0.9, 0.99, 0.999]}, "adamw has 2"),
        ({"name": "came", "betas": [0.9, 0.99]}, "came has 3"),
        ({"warmup": 1.5}, "warmup"),
        ({"warmup": -0.1}, "warmup"),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        OptimizerConfig(**settings)


def test_an_extension_starts_the_schedule_again_without_warmup():
    config = OptimizerConfig(lr=2.0, schedule="linear", warmup=2)
    train = TrainConfig(steps=8, extended_at=[4])
    rates = [schedules.learning_rate(step, train.schedule_stage(step), config) for step in range(8)]
    assert rates == [1.0, 2.0, 2.0, 1.0, 2.0, 1.5, 1.0, 0.5]
    assert train.schedule_stage(8) == range(4, 8)  # after the last step


def test_lora_plus_makes_b_learn_faster_by_the_ratio():
    config = OptimizerConfig(name="adamw", loraplus_lr_ratio=16.0)
    values = FlatParameters(named_parameters(), lr_multiplier=optimizers.lr_multiplier(config))
    optimizer = optimizers.build_optimizer(values, config)
    optimizers.set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {member.name: rates[id(t.values)] for t in values.tensors for member in t.members}
    assert [by_name[name] for name, _ in values.named] == [1e-3, pytest.approx(1.6e-2)]
    assert optimizer.param_groups[0]["lr"] == 1e-3  # the one that is logged


NAMES = ("down.to_q.lora_A.weight", "down.to_q.lora_B.weight")
ENCODER = ("text_encoder.q.lora_A.weight", "text_encoder.q.lora_B.weight")
TOKEN = ("text_encoder.embeddings.learned",)


@pytest.mark.parametrize(
    ("names", "recipe", "rates"),
    [
        (NAMES, {}, {"lr": 1e-3}),
        (NAMES + ENCODER, {}, {"lr": 1e-3}),
        (NAMES + ENCODER, {"text_encoder_lr": 1e-4}, {"lr": 1e-3, "lr_text_encoder": 1e-4}),
        (NAMES, {"ratio": 16.0}, {"lr": 1e-3, "lr_lora_b": 1.6e-2}),
        (
            NAMES + ENCODER,
            {"text_encoder_lr": 1e-4, "ratio": 2.0},
            {"lr": 1e-3, "lr_lora_b": 2e-3, "lr_text_encoder": 1e-4, "lr_text_encoder_lora_b": 2e-4},
        ),
        (NAMES + TOKEN, {"token_lr": 5e-3}, {"lr": 1e-3, "lr_embedding": 5e-3}),
        (TOKEN, {"token_lr": 5e-3}, {"lr": 5e-3}),
        (ENCODER, {"text_encoder_lr": 1e-4}, {"lr": 1e-4}),
        (ENCODER + TOKEN, {"text_encoder_lr": 1e-4, "token_lr": 5e-3}, {"lr": 1e-4, "lr_embedding": 5e-3}),
    ],
)
def test_the_learning_rate_of_each_group_is_logged_where_it_differs(names, recipe, rates):
    """The rates are those that the optimizer uses."""
    whole = Recipe(
        base="b",
        dataset="d",
        out="o",
        adapter={"text_encoder": True, "text_encoder_lr": recipe.get("text_encoder_lr")},
        optimizer={"name": "adamw", "lr": 1e-3, "loraplus_lr_ratio": recipe.get("ratio", 1.0)},
        textual_inversion={"token": "t", "initializer_token": "dog", "lr": recipe.get("token_lr", 1e-3)},
    )
    multiplier = functools.partial(text_encoders.lr_multiplier, whole)
    trained = FlatParameters(
        [(name, torch.nn.Parameter(torch.ones(2, 2))) for name in names],
        lr_multiplier=optimizers.lr_multiplier(whole.optimizer, multiplier),
    )
    optimizer = optimizers.build_optimizer(trained, whole.optimizer)
    optimizers.set_learning_rate(optimizer, 1e-3)
    groups = optimizers.groups_by_name(optimizer, trained, text_encoders.lr_name)
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(rates)
    assert next(iter(groups)) == "lr"
    used = {group["lr"] for group in optimizer.param_groups}
    assert used == {group["lr"] for group in groups.values()}
