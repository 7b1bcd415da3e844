"""Nothing below the first adapted block computes or keeps anything for gradients."""

from __future__ import annotations

import weakref

import pytest
import torch

from lorakit import adapters
from lorakit.adapters.targets import find_target_modules
from lorakit.models.memory import placement
from lorakit.models.memory.blocks import repeated_blocks
from lorakit.models.memory.settings import MemorySettings
from tests import tiny
from tests.models.families.common import CAPTIONS, encode_all, family_of, noise_for, two_timesteps

ROWS = ["sd15", "sdxl", "sd3", "flux1-dev", "qwen-image", "pixart-sigma", "lumina2", "wan", "chroma"]


def _storages(tree: object) -> set[int]:
    """The memory of all tensors in nested containers."""
    leaves = torch.utils._pytree.tree_leaves(tree)
    return {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, torch.Tensor)}


class Watch:
    """A denoiser with an adapter in its last block only, and counters of what the blocks below it do."""

    def __init__(self, name: str, *, checkpointing: bool, quantized: bool = False) -> None:
        self.family, pipe = family_of(name), tiny.build(name)
        self.denoiser = self.family.denoiser(pipe)
        self.inputs = noise_for(name), two_timesteps(self.family)[:1]
        self.cond = self.family.collate(encode_all(name, pipe, CAPTIONS[:1]))
        blocks = self._blocks_in_order()
        targets = find_target_modules(self.denoiser, self.family.target_modules)
        last = next(block for block in reversed(blocks) if any(t.startswith(f"{block}.") for t in targets))
        adapters.inject_adapter(
            self.denoiser, rank=2, alpha=2, targets=[t for t in targets if t.startswith(f"{last}.")]
        )
        for key, parameter in adapters.trainable_parameters(self.denoiser):
            if key.endswith("lora_B.weight"):
                parameter.data.fill_(0.1)
        if checkpointing:
            placement.place(self.denoiser, MemorySettings(gradient_checkpointing=1.0), torch.device("cpu"))
        self.runs = 0
        self.saved: list[weakref.ref[torch.Tensor]] = []
        self.outputs: list[weakref.ref[torch.Tensor]] = []
        self.adapted_is_reached = False
        self.blocks_below = list(blocks).index(last)
        for block in list(blocks.values())[: self.blocks_below]:
            block.register_forward_hook(self._after_block)
        self.may_stay = _storages((*self.inputs, self.cond))
        for block in list(blocks.values())[self.blocks_below :]:
            block.register_forward_pre_hook(self._reach, with_kwargs=True)

    def _blocks_in_order(self) -> dict[str, torch.nn.Module]:
        """The blocks in the order in which they run."""
        order: dict[str, torch.nn.Module] = {}
        hooks = [
            block.register_forward_pre_hook(lambda block, *_, name=name: order.update({name: block}))
            for name, block in ((block.name, block.module) for block in repeated_blocks(self.denoiser))
        ]
        with torch.no_grad():
            self.family.predict(self.denoiser, *self.inputs, self.cond)
        for hook in hooks:
            hook.remove()
        return order

    def _after_block(self, module: torch.nn.Module, inputs: object, output: object) -> None:
        self.runs += 1
        tensors = output if isinstance(output, tuple) else (output,)
        self.outputs += [weakref.ref(tensor) for tensor in tensors if isinstance(tensor, torch.Tensor)]
        assert not any(tensor.requires_grad for tensor in tensors if isinstance(tensor, torch.Tensor))

    def _reach(self, module: torch.nn.Module, inputs: object, keywords: object) -> None:
        self.adapted_is_reached = True
        self.may_stay |= _storages((inputs, keywords))  # skip connections lead around the adapted block

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd keeps before the adapted block."""
        if not self.adapted_is_reached and not isinstance(tensor, torch.nn.Parameter):
            self.saved.append(weakref.ref(tensor))
        return tensor

    def forward(self) -> torch.Tensor:
        """Predict, and count what is kept."""
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            return self.family.predict(self.denoiser, *self.inputs, self.cond).square().mean()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_blocks_below_the_first_adapted_one_keep_nothing_and_run_once(name, checkpointing):
    watch = Watch(name, checkpointing=checkpointing)
    assert watch.blocks_below > 0
    loss = watch.forward()
    kept = [tensor for reference in (*watch.saved, *watch.outputs) if (tensor := reference()) is not None]
    assert _storages(kept) <= watch.may_stay
    assert watch.runs == watch.blocks_below
    loss.backward()
    assert watch.runs == watch.blocks_below, "no block below is recomputed"
    assert any(p.grad is not None for _, p in adapters.trainable_parameters(watch.denoiser))
