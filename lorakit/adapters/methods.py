"""The kinds of adapters: peft's settings of each, and the values that each one begins with.

LoRA: arXiv:2106.09685. rsLoRA: arXiv:2312.03732. DoRA: arXiv:2402.09353. LoKr and LoHa as LyCORIS begins
them: arXiv:2309.14859. OFT: arXiv:2306.07280. PiSSA: arXiv:2404.02948. OLoRA: arXiv:2406.01775.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from lorakit.adapters.targets import AdapterSpec
from lorakit.core import rng

METHODS = ("lora", "rslora", "dora", "lokr", "loha", "oft")


def peft_config(shape: AdapterSpec) -> Any:
    """peft's configuration of an adapter; initial values are `begin`'s."""
    import peft

    common: dict[str, Any] = {"target_modules": list(shape.modules)}
    exact: dict[str, Any] = {
        "rank_pattern": {_exactly(name): rank for name, rank in shape.ranks.items()},
        "alpha_pattern": {_exactly(name): alpha for name, alpha in shape.alphas.items()},
    }
    if shape.type == "oft":
        return peft.OFTConfig(r=0, oft_block_size=shape.rank, init_weights=True, **common)
    if shape.type == "loha":
        return peft.LoHaConfig(r=shape.rank, alpha=shape.alpha, **common, **exact)
    if shape.type == "lokr":
        return peft.LoKrConfig(
            r=shape.rank, alpha=shape.alpha, decompose_factor=shape.factor or -1, **common, **exact
        )
    return peft.LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        use_rslora=shape.type == "rslora",
        use_dora=shape.type == "dora",
        init_lora_weights=False,
        **common,
        **exact,
    )


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}"  # peft adds the end


def init_parameter(name: str, parameter: nn.Parameter, seed: int, init: str) -> None:
    """The first value of a parameter, by a keyed generator; one half of each product is zero, so that the
    adapter changes nothing. Magnitudes are not set here: they are the base's."""
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


def principal_factors(
    weight: torch.Tensor, rank: int, scale: float, init: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of which scale * B @ A is the part of a weight (out, in, ...) that PiSSA or OLoRA begins with:
    the largest singular values, shared evenly; or the first rows and columns of a QR decomposition."""
    flat = weight.detach().float().cpu().flatten(1)
    if init == "pissa":
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
        root = (values[:rank] / scale).sqrt()
        down, up = root[:, None] * right[:rank], left[:, :rank] * root
    else:  # as it stands in the paper: not divided by the scale, which is taken off with it
        one, two = torch.linalg.qr(flat)
        down, up = two[:rank], one[:, :rank]
    kernel = weight.shape[2:]
    return down.reshape(-1, *weight.shape[1:]), up.reshape(*up.shape, *[1] * len(kernel)).contiguous()
