"""Files of other programs: damaged keys are repaired and said, unreadable kinds refused by name."""

from __future__ import annotations

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.formats import detect_family
from lorakit.adapters.tools.inspect import inspect_adapter
from lorakit.core import storage
from lorakit.core.errors import DataError


def lora(stem, height=8, width=8):
    """Return LoRA tensors of one module; the keys have the spelling of kohya for underscored names."""
    down, up = ("lora_down", "lora_up") if stem.startswith("lora_") else ("lora_A", "lora_B")
    generator = torch.Generator().manual_seed(height + width)
    return {
        f"{stem}.{down}.weight": torch.randn(2, width, generator=generator),
        f"{stem}.{up}.weight": torch.randn(height, 2, generator=generator),
    }


def read(tmp_path, tensors, family=None):
    path = tmp_path / "foreign.safetensors"
    storage.write_safetensors(path, tensors, {})
    return formats.read_adapter_file(path, family)


@pytest.mark.parametrize(
    ("damaged", "whole", "damage"),
    [
        ("transformer.base_model.model.transformer_blocks.0.attn.to_q",  # SimpleTuner, issue 779
         "transformer.transformer_blocks.0.attn.to_q", "base_model"),
        ("diffusion_model.diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.self_attn.q",
         "prefix twice"),
        ("lora_unet__down_blocks_1_attentions_0_proj_in", "lora_unet_down_blocks_1_attentions_0_proj_in",
         "doubled separator"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in_", "lora_unet_down_blocks_1_attentions_0_proj_in",
         "at the end"),
        ("transformer._orig_mod.transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_q",
         "wrapper"),
    ],
)  # fmt: skip
def test_damaged_keys_are_repaired_and_said(damaged, whole, damage, tmp_path):
    repaired, expected = read(tmp_path, lora(damaged)), read(tmp_path, lora(whole))
    assert list(repaired.deltas) == list(expected.deltas)
    for module, delta in expected.deltas.items():
        assert torch.equal(repaired.deltas[module].dense(), delta.dense())
    assert expected.notes == ()
    (note,) = inspect_adapter(repaired)["notes"]
    assert note.startswith("repaired 2 keys")
    assert damage in note
    assert damaged in note


def test_a_repaired_key_that_names_another_tensor_is_refused(tmp_path):
    stem = "transformer.transformer_blocks.0.attn.to_q"
    tensors = lora(stem) | lora(stem.replace("transformer.", "transformer.base_model.model.", 1))
    with pytest.raises(DataError, match="two keys name the same tensor"):
        read(tmp_path, tensors)


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.on_input", (), r"\(IA\)3"),
        ("lora_unet_mid_block_attentions_0_proj_in.a1.weight", (4, 8), "GLoRA"),
        ("diffusion_model.blocks.0.self_attn.q.diff_b", (8,), "biases"),  # lightx2v, Wan
        ("diffusion_model.blocks.0.self_attn.norm_q.diff", (8,), "norms"),  # lightx2v, Wan
        ("double_blocks.0.img_attn.qkv.lora_B.bias", (8,), "biases"),  # Flux.1 Canny and Depth
        ("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight", (8, 8), "LLLite"),
        ("ip_adapter.1.to_k_ip.weight", (8, 8), "IP-Adapter"),
        ("emb_params", (2, 8), "embedding"),
    ],
)
def test_a_kind_that_is_not_read_is_refused_by_name_with_a_remedy(key, shape, words, tmp_path):
    others = lora("lora_unet_down_blocks_1_attentions_0_proj_in")
    with pytest.raises(DataError, match=words) as error:
        read(tmp_path, others | {key: torch.ones(shape)})
    assert key in str(error.value)
    assert error.value.remedy


@pytest.mark.parametrize(("factor", "family"), [(7, "flux1"), (9, "flux2")])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "lokr with factors", "full"])
def test_heights_of_every_kind_distinguish_flux2_from_flux1(factor, family, kind):
    height, width = 64 * factor, 64
    kinds = {
        "lora": {"down": (2, width), "up": (height, 2)},
        "loha": {"hada_w1_a": (height, 2), "hada_w1_b": (2, width)},
        "lokr": {"lokr_w1": (4, 4), "lokr_w2": (height // 4, width // 4)},
        "lokr with factors": {
            "lokr_w1": (4, 4), "lokr_w2_a": (height // 4, 2), "lokr_w2_b": (2, width // 4),
        },
        "full": {"full": (height, width)},
    }  # fmt: skip
    parts = {name: torch.zeros(shape) for name, shape in kinds[kind].items()}
    stem = "diffusion_model.single_blocks.3.linear1"
    families = detect_family.families_from_tensors({stem: parts})
    assert {"flux1", "flux2"} & set(families) == {family}


@pytest.mark.parametrize(
    ("stem", "height", "width", "expected"),
    [
        ("diffusion_model.transformer_blocks.3.audio_attn1.to_q", 2048, 2048, ("ltx-2",)),
        ("transformer.transformer_blocks.3.attn1.to_q", 3072, 3072, ("cogvideox",)),
        ("transformer.transformer_blocks.3.attn1.to_q", 1920, 1920, ("cogvideox",)),
        ("transformer.transformer_blocks.3.attn1.to_q", 4096, 4096, ("cogview4", "glm-image")),
    ],
)
def test_families_with_the_same_names_are_known_by_marks_and_widths(stem, height, width, expected, tmp_path):
    assert read(tmp_path, lora(stem, height, width)).possible_families == expected
