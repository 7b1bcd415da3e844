"""A step of a sweep of several adapters compared with a step of one adapter alone, on a U-Net of 1 M weights.

The U-Net has random weights and sees latents of 16 x 16, as at 128 pixels. Times are user and system CPU
seconds; rounds are interleaved and medians compared. A speed counts only if the bytes are equal.
"""

from __future__ import annotations

import statistics
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

    seconds: dict[int, list[float]] = {1: [], NUM_ADAPTERS: []}
    for count in seconds:
        take_step(count)  # the warm-up; here the bits are compared
    for _ in range(rounds):
        for count, times in seconds.items():
            start = cpu_seconds()
            for _ in range(steps):
                take_step(count)
            times.append((cpu_seconds() - start) / steps)
    ratios = [many / one for many, one in zip(seconds[NUM_ADAPTERS], seconds[1], strict=True)]
    return {
        "adapters": NUM_ADAPTERS,
        "batch_size": batch_size,
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        "one_ms": round(1000 * statistics.median(seconds[1]), 1),
        "all_ms": round(1000 * statistics.median(seconds[NUM_ADAPTERS]), 1),
        "ratio": round(statistics.median(ratios), 2),
        "goal": GOAL,
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
        f" {row['all_ms']} ms, one alone {row['one_ms']} ms, ratio {row['ratio']} (goal {row['goal']}), {how}"
    )
