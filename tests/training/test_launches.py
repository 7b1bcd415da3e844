"""Kernel launches of a full-size network with an adapter, counted on tensors without numbers."""

from __future__ import annotations

import collections
from typing import Any

import torch
from peft import inject_adapter_in_model
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit import adapters
from lorakit.adapters import methods
from lorakit.adapters.targets import AdapterSpec, find_target_modules
from lorakit.models import families
from lorakit.models.families.published_models import PUBLISHED_MODELS

MAX_LAUNCHES = 5_600
"""Of an SDXL forward; float32 adapters under autocast need 8,628."""
WITHOUT_KERNEL = {
    "alias",
    "as_strided",
    "detach",
    "empty",
    "empty_like",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "squeeze",
    "t",
    "transpose",
    "unsqueeze",
    "view",
    "_unsafe_view",
}


class Launches(TorchDispatchMode):
    """Counts the calls that are more than a view."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._overloadpacket.__name__
        self.counts[name] += name not in WITHOUT_KERNEL
        return function(*args, **(kwargs or {}))


def test_an_sdxl_forward_in_bf16_launches_few_kernels():
    family, bf16 = families.get_family("sdxl"), {"device": "meta", "dtype": torch.bfloat16}
    network = next(m for m in PUBLISHED_MODELS if m.family == "sdxl").build().to(torch.bfloat16)
    names = tuple(find_target_modules(network, family.target_modules))
    config = methods.peft_config(AdapterSpec("lora", 16, 16, names))
    inject_adapter_in_model(config, network, adapter_name=adapters.ADAPTER_NAME)
    adapters.cast_adapter(network, torch.bfloat16)
    cond = {
        "prompt_embeds": torch.empty(1, 77, 2048, **bf16),
        "pooled_prompt_embeds": torch.empty(1, 1280, **bf16),
    }
    with Launches() as launches:
        noisy, t = torch.empty(1, 4, 128, 128, **bf16), torch.empty(1, device="meta")
        prediction = family.predict(network, noisy, t, cond)
    assert prediction.shape == noisy.shape
    assert len(names) == 560
    assert launches.counts["mm"] + launches.counts["addmm"] > 3 * len(names)  # base, A and B of each
    assert launches.counts.total() <= MAX_LAUNCHES
