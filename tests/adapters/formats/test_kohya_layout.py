"""`convert --to kohya`: the names that sd-scripts and musubi-tuner write, for U-Nets and transformers."""

from __future__ import annotations

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.formats import layouts, native_names
from lorakit.adapters.formats.export import save_adapter
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from tests import tiny
from tests.adapters.formats import webui
from tests.adapters.formats.runs import RANK, family_of, train

NAMES = {
    "flux1-kontext": ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1"],
    "sd3": ["lora_unet_joint_blocks_0_x_block_attn_qkv", "lora_unet_joint_blocks_0_x_block_attn_proj"],
    "flux1": ["lora_unet_double_blocks_0_txt_attn_proj", "lora_unet_single_blocks_0_linear1"],
    "flux2": ["lora_unet_single_blocks_0_linear2", "lora_unet_double_blocks_0_img_attn_qkv"],
    "wan": ["lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_0_cross_attn_o"],
    "anima": ["lora_unet_blocks_0_self_attn_q_proj", "lora_unet_blocks_0_cross_attn_output_proj"],
    "krea2": ["lora_unet_blocks_0_attn_wq", "lora_unet_blocks_0_attn_gate"],
    "hunyuan-video": ["lora_unet_txt_in_individual_token_refiner_blocks_0_self_attn_qkv"],
    "lumina2": ["lora_unet_layers_0_attention_qkv", "lora_unet_context_refiner_0_attention_out"],
    "z-image": ["lora_unet_layers_0_attention_qkv"],
    "qwen-image": ["lora_unet_transformer_blocks_0_attn_add_q_proj"],
}
"""Some stems of each family, from sd-scripts' and musubi-tuner's own files."""
ROWS = {row: family_of(row).name for row in tiny.ROWS}


def rows_of(predicate):
    first: dict[str, str] = {}
    for row, family in ROWS.items():
        if predicate(family):
            first.setdefault(family, row)
    return [pytest.param(row, id=family) for family, row in first.items()]


def is_transformer(family):
    return not family.startswith(("sd15", "sdxl", "kolors"))


def convert(row, tmp_path):
    """Return the files of an adapter with random weights, as it was trained and converted."""
    source = tmp_path / "theirs.safetensors"
    train(row, source)
    adapter = formats.read_adapter_file(source)
    return adapter, save_adapter(adapter, tmp_path / "kohya.safetensors", "kohya").path


@pytest.mark.parametrize(
    "row", rows_of(lambda family: is_transformer(family) and native_names.has_native_names(family))
)
def test_a_transformer_gets_the_names_of_the_published_network(row, tmp_path):
    adapter, file = convert(row, tmp_path)
    tensors = storage.read_safetensors(file)
    family = ROWS[row]
    stems = {key.split(".")[0] for key in tensors}
    assert set(NAMES.get(family, ())) <= stems
    assert all(stem.startswith("lora_unet_") for stem in stems)
    assert {f"{stem}.alpha" for stem in stems} <= set(tensors)
    again = formats.read_adapter_file(file, family)
    assert set(adapter.deltas) <= set(again.deltas)
    for module, delta in again.deltas.items():
        expected = adapter.deltas[module].dense() if module in adapter.deltas else torch.zeros(1)
        assert torch.allclose(delta.dense(), expected, atol=1e-5)
    if family in webui.FUSED:
        weights = {module: torch.zeros(delta.shape) for module, delta in again.deltas.items()}
        for module, change in webui.differences(tensors, family, weights).items():
            assert torch.allclose(change.float(), again.deltas[module].dense(), atol=1e-5)


@pytest.mark.parametrize("row", ["flux1-dev", "sd35", "wan", "krea2", "qwen-image"])
def test_a_file_in_kohyas_layout_keeps_its_keys_and_ranks(row, tmp_path):
    _, file = convert(row, tmp_path)
    fused = storage.read_safetensors(file)
    # as sd-scripts trains it: the fused layer has one A of the rank
    trained = {
        key: value[: 4 * RANK, ...] if key.endswith("lora_down.weight") else value
        for key, value in fused.items()
    }
    for key in [key for key in trained if key.endswith("lora_down.weight")]:
        up = key.replace("lora_down", "lora_up")
        trained[key] = torch.randn(RANK, trained[key].shape[1], generator=torch.Generator().manual_seed(1))
        trained[up] = torch.randn(len(trained[up]), RANK, generator=torch.Generator().manual_seed(2))
        trained[key.replace("lora_down.weight", "alpha")] = torch.tensor(float(RANK))
    theirs = tmp_path / "trained.safetensors"
    storage.write_safetensors(theirs, trained, {})
    adapter = formats.read_adapter_file(theirs, ROWS[row])
    back = storage.read_safetensors(save_adapter(adapter, tmp_path / "back.safetensors", "kohya").path)
    assert {key: tuple(value.shape) for key, value in back.items()} == {
        key: tuple(value.shape) for key, value in trained.items()
    }
    for key in (key for key in back if key.endswith("lora_up.weight")):
        down = key.replace("lora_up", "lora_down")
        assert torch.allclose(back[key] @ back[down], trained[key] @ trained[down], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "row",
    rows_of(lambda family: is_transformer(family) and not native_names.has_native_names(family)),
)
def test_a_transformer_without_known_names_is_refused(row, tmp_path):
    with pytest.raises(ConfigError, match="neither sd-scripts nor musubi-tuner") as caught:
        convert(row, tmp_path)
    assert "--to diffusers" in str(caught.value)
    assert not (tmp_path / "kohya.safetensors").exists()


def test_all_text_encoders_have_names():
    deltas = {
        f"text_encoder{suffix}.text_model.encoder.layers.0.self_attn.q_proj": formats.LoraDelta(
            torch.ones(2, 8), torch.ones(8, 2), 1.0
        )
        for suffix in ("", "_2")
    }
    deltas["transformer.transformer_blocks.0.attn.to_out.0"] = next(iter(deltas.values()))
    stems = {key.split(".")[0] for key in layouts.write_kohya(deltas, "sd3")}
    assert {stem.split("_")[1] for stem in stems} == {"te1", "te2", "unet"}
