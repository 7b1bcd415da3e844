"""Copies between host and device, seen on fake tensors of a GPU that this machine need not have."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lorakit.models import families
from lorakit.models.acceleration.host_waits import find_host_waits


def _unet() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 32,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )


def test_a_forward_pass_of_sdxl_copies_nothing_from_the_host():
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), torch.no_grad():
        network, family = _unet(), families.get_family("sdxl")
        cond = {"prompt_embeds": torch.zeros(1, 77, 32), "pooled_prompt_embeds": torch.zeros(1, 32)}
        inputs = torch.zeros(1, 4, 16, 16), torch.zeros(1, dtype=torch.long), cond
        assert find_host_waits(lambda: family.predict(network, *inputs)) == []
        (copy,) = find_host_waits(lambda: cond["prompt_embeds"].new_tensor([1, 2]))
    assert copy.startswith("_to_copy in test_host_waits.py:")
