"""The adapter methods: peft's configuration of each, and the initial values of its parameters.

LoRA: arXiv:2106.09685. rsLoRA: arXiv:2312.03732. DoRA: arXiv:2402.09353. LoKr and LoHa with the initial
values of LyCORIS: arXiv:2309.14859. OFT: arXiv:2306.07280. PiSSA: arXiv:2404.02948. OLoRA: arXiv:2406.01775.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorakit.adapters.targets import AdapterSpec
from lorakit.core import rng

METHODS = ("lora", "rslora", "dora", "lokr", "loha", "oft")


@dataclass(frozen=True)
class LowRankFactors:
    """The two factors of a weight (out, in, ...): down (rank, in, ...) and up (out, rank, ...)."""

    down: torch.Tensor
    up: torch.Tensor


def peft_config(spec: AdapterSpec) -> Any:
    """Return peft's configuration of an adapter; `init_parameter` sets the initial values."""
    import peft

    common: dict[str, Any] = {"target_modules": list(spec.target_modules)}
    patterns: dict[str, Any] = {
        "rank_pattern": {_exact_pattern(name): rank for name, rank in spec.rank_pattern.items()},
        "alpha_pattern": {_exact_pattern(name): alpha for name, alpha in spec.alpha_pattern.items()},
    }
    if spec.method == "oft":
        return peft.OFTConfig(r=0, oft_block_size=spec.rank, init_weights=True, **common)
    if spec.method == "loha":
        return peft.LoHaConfig(r=spec.rank, alpha=spec.alpha, **common, **patterns)
    if spec.method == "lokr":
        return peft.LoKrConfig(
            r=spec.rank, alpha=spec.alpha, decompose_factor=spec.factor or -1, **common, **patterns
        )
    return peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        use_rslora=spec.method == "rslora",
        use_dora=spec.method == "dora",
        init_lora_weights=False,
        **common,
        **patterns,
    )


def _exact_pattern(name: str) -> str:
    return f"^{re.escape(name)}"  # peft appends the end of the expression


def init_parameter(name: str, parameter: nn.Parameter, seed: int, init: str) -> None:
    """Set a parameter's initial value with a keyed generator.

    One factor of each product is zero, so that a new adapter changes nothing. DoRA magnitudes are not set
    here: they are norms of the base model's weights.
    """
    part = re.search(r"(lora_[AB]|hada_w\d_[ab]|lokr_w\d(?:_[ab])?|oft_R)(?:\.weight)?$", name)
    if part is None:
        return
    values, generator = torch.zeros(parameter.shape), rng.generator(seed, "init", name)
    match part[1]:
        case "lora_A" if init == "gaussian":
            values.normal_(std=1 / len(parameter), generator=generator)
        case "lora_A" | "lokr_w1" | "lokr_w1_a" | "lokr_w1_b" | "lokr_w2_a":
            bound = parameter[0].numel() ** -0.5  # Kaiming, a = sqrt 5
            values.uniform_(-bound, bound, generator=generator)
        case "hada_w1_a":
            values.normal_(std=0.1, generator=generator)
        case "hada_w1_b" | "hada_w2_b":
            values.normal_(std=1.0, generator=generator)
    parameter.data = values.to(parameter.device)


def principal_factors(weight: torch.Tensor, rank: int, scale: float, init: str) -> LowRankFactors:
    """Return the factors of which scale * up @ down is the part of a weight that PiSSA or OLoRA starts from.

    PiSSA: the largest singular values, shared evenly between the factors. OLoRA: the first rows and columns
    of a QR decomposition.
    """
    flat = weight.detach().float().cpu().flatten(1)
    if init == "pissa":
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
        root = (values[:rank] / scale).sqrt()
        down, up = root[:, None] * right[:rank], left[:, :rank] * root
    else:  # as in the paper: not divided by the scale, which is subtracted with the same scale
        q, r = torch.linalg.qr(flat)
        down, up = r[:rank], q[:, :rank]
    kernel = weight.shape[2:]
    return LowRankFactors(
        down.reshape(-1, *weight.shape[1:]), up.reshape(*up.shape, *[1] * len(kernel)).contiguous()
    )
