from __future__ import annotations

import functools
import math

import pytest
import torch

from lorakit.adapters import text_encoders
from lorakit.config.recipe import OptimizerConfig, Recipe, TrainConfig
from lorakit.core.errors import DataError
from lorakit.training import optimizers
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


@pytest.mark.parametrize("name", ["adamw8bit", "adamw"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name):
    settings = OptimizerConfig(name=name, lr=1e-2)
    straight = parameters()
    optimizer = optimizers.build_optimizer(straight, settings)
    for number in range(6):
        if number == 3:
            weights = [p.detach().clone() for _, p in straight.named]
            state = {k: v.clone() for k, v in optimizers.optimizer_state_dict(optimizer, straight).items()}
        step(optimizer, straight, number)

    resumed = parameters(seed=9)
    for (_, parameter), value in zip(resumed.named, weights, strict=True):
        parameter.data.copy_(value)
    other = optimizers.build_optimizer(resumed, settings)
    optimizers.load_optimizer_state_dict(other, resumed, state)
    again = optimizers.optimizer_state_dict(other, resumed)
    assert all(torch.equal(again[k], state[k]) and again[k].dtype == state[k].dtype for k in state)
    for number in range(3, 6):
        step(other, resumed, number)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(straight.named, resumed.named, strict=True))


def test_small_tensors_are_in_8_bits_too():
    values = parameters()
    optimizer = optimizers.build_optimizer(values, OptimizerConfig())
    step(optimizer, values, 0)
    state = optimizers.optimizer_state_dict(optimizer, values)
    assert {state[f"{n}|state{i}"].dtype for n, _ in values.named for i in (1, 2)} == {torch.uint8}


def test_a_state_of_another_adapter_is_refused():
    values = parameters()
    optimizer = optimizers.build_optimizer(values, OptimizerConfig())
    step(optimizer, values, 0)
    state = optimizers.optimizer_state_dict(optimizer, values)
    renamed = FlatParameters([(name.replace("a.", "b."), p) for name, p in values.named])
    with pytest.raises(DataError, match="another adapter"):
        optimizers.load_optimizer_state_dict(
            optimizers.build_optimizer(renamed, OptimizerConfig()), renamed, state
        )
    smaller = FlatParameters([(name, torch.nn.Parameter(p[:2].detach())) for name, p in values.named])
    with pytest.raises(DataError, match="the parameter needs"):
        optimizers.load_optimizer_state_dict(
            optimizers.build_optimizer(smaller, OptimizerConfig()), smaller, state
        )


def test_schedules():
    rate = lambda step, **s: optimizers.learning_rate(step, range(100), OptimizerConfig(lr=2.0, **s))  # noqa: E731
    assert [rate(k) for k in (0, 50, 99)] == [2, 2, 2]
    assert [rate(k, warmup=4) for k in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rate(50, schedule="linear") == pytest.approx(1.0)
    assert rate(25, schedule="cosine") == pytest.approx(1 + math.cos(math.pi / 4))
    assert rate(99, schedule="cosine", warmup=10) < 0.01


def test_an_extension_starts_the_schedule_again_without_warmup():
    config = OptimizerConfig(lr=2.0, schedule="linear", warmup=2)
    train = TrainConfig(steps=8, extended_at=[4])
    rates = [optimizers.learning_rate(step, train.schedule_stage(step), config) for step in range(8)]
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
