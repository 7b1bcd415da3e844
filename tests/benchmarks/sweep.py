"""A step of a sweep of several adapters compared with a step of one adapter alone, on a U-Net of 1 M weights.

The U-Net has random weights and sees latents of 16 x 16, as at 128 pixels. Times are user and system CPU
seconds; rounds are interleaved and medians compared. A speed counts only if the bytes are equal. One adapter
on the images of all members is the bound.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lorakit import adapters
from lorakit.training.sweep.joint_network import Call, JointNetwork
from lorakit.training.sweep.shared_base import shared_copy
from tests.benchmarks.step import cpu_seconds

GOAL = 2.5  # ratio of a step of all adapters to a step of one
NUM_ADAPTERS, RANK = 8, 8


def small_unet() -> nn.Module:
    """Return a U-Net of Stable Diffusion's layout with about a million random weights, frozen."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            cross_attention_dim=32,
        )
    return network.requires_grad_(False)


def measure(*, rounds: int, steps: int, batch_size: int = 1) -> dict[str, Any]:
    """Return medians of `rounds` interleaved rounds of `steps` forward and backward passes."""
    base = small_unet()
    members = [_adapted(base, seed) for seed in range(NUM_ADAPTERS)]
    joint = JointNetwork(shared_copy(base), members)
    generator = torch.Generator().manual_seed(0)

    def call(member: int) -> Call:
        latents = torch.randn(batch_size, 4, 16, 16, generator=generator)
        timesteps = torch.randint(0, 1000, (batch_size,), generator=generator)
        text = torch.randn(batch_size, 77, 32, generator=generator)
        return Call(member, (latents, timesteps, text), {"return_dict": False})

    def take_step(count: int) -> None:
        calls = [call(member) for member in range(count)]
        forward = joint.forward(calls)
        for one in calls:
            one.output[0].square().mean().backward()
        forward.backward()
        for network in members[:count]:
            for _, parameter in adapters.trainable_parameters(network):
                parameter.grad = None

    def take_plain_step() -> None:
        """One adapter alone on the images of all: no sweep can be faster."""
        calls = [call(0) for _ in range(NUM_ADAPTERS)]
        tensors = [torch.cat(values) for values in zip(*(one.leaves[:3] for one in calls), strict=True)]
        members[0](*tensors, return_dict=False)[0].square().mean().backward()
        for _, parameter in adapters.trainable_parameters(members[0]):
            parameter.grad = None

    contestants: dict[str, Callable[[], None]] = {
        "one": functools.partial(take_step, 1),
        "all": functools.partial(take_step, NUM_ADAPTERS),
        "plain": take_plain_step,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values():
        work()  # the warm-up; here the bits are compared
    for _ in range(rounds):
        for name, work in contestants.items():
            start = cpu_seconds()
            for _ in range(steps):
                work()
            seconds[name].append((cpu_seconds() - start) / steps)

    def ratio(name: str, other: str) -> float:
        pairs = zip(seconds[name], seconds[other], strict=True)
        return round(statistics.median(value / reference for value, reference in pairs), 2)

    return {
        "adapters": NUM_ADAPTERS,
        "batch_size": batch_size,
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        **{f"{name}_ms": round(1000 * statistics.median(values), 1) for name, values in seconds.items()},
        "ratio": ratio("all", "one"),
        "goal": GOAL,
        "plain_ratio": ratio("plain", "one"),
        "computed_separately": joint.num_separate,
    }


def _adapted(base: nn.Module, seed: int) -> nn.Module:
    network = shared_copy(base)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    adapters.inject_adapter(network, rank=RANK, alpha=RANK, targets=targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapters.trainable_parameters(network):
        if name.endswith("lora_B.weight"):  # an adapter that has an effect
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return network


def format_report(row: dict[str, Any]) -> str:
    """Return the row as text."""
    how = "bytes equal" if not row["computed_separately"] else "computed member by member: bits differ"
    return (
        f"{row['adapters']} adapters on {row['parameters'] / 1e6:.1f} M weights, {row['batch_size']} images:"
        f" {row['all_ms']} ms, one alone {row['one_ms']} ms, ratio {row['ratio']} (goal {row['goal']}),"
        f" {how}; bound: ratio {row['plain_ratio']}"
    )
