"""The statement of each consumer's rules: keys to modules, kinds, answers for any file, whole networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorakit.adapters import formats
from lorakit.adapters.formats import consumers, layouts
from lorakit.adapters.formats.export import save_adapter
from lorakit.adapters.tools import inspect
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from tests import tiny
from tests.adapters.formats.runs import export_exactly, family_of, train

ROWS = {family_of(row).name: row for row in reversed(tiny.ROWS)}
COMFYUI = [family for family in ROWS if "comfyui" in consumers.loader_rules(family)]
LORA = (("lora_down.weight", (2, 8)), ("lora_up.weight", (24, 2)), ("alpha", ()))
PEFT = (("lora_A.weight", (2, 8)), ("lora_B.weight", (8, 2)))
FILES = {
    "kohya": ("flux1", "lora_unet_double_blocks_0_img_attn_qkv", LORA, "yes"),
    "peft": ("flux1", "transformer.transformer_blocks.0.attn.to_q", (*PEFT, ("alpha", ())), "yes"),
    "bare": ("flux1", "transformer_blocks.0.attn.to_q", PEFT, "yes"),
    "lycoris": ("flux1", "lycoris_transformer_blocks_0_attn_to_q", LORA, "yes"),
    "wan as diffusers names it": ("wan", "transformer.blocks.0.attn1.to_q", PEFT, "no"),
    "bias of wan": ("wan", "diffusion_model.blocks.0.cross_attn.k_img", (("diff_b", (8,)),), "yes"),
    "norm of wan": ("wan", "diffusion_model.blocks.0.norm3", (("diff", (8,)),), "yes"),
    "double prefix": ("sd3", "transformer.base_model.model.transformer_blocks.0.attn.to_q", PEFT, "no"),
    "magnitudes": ("flux1", "transformer.x_embedder", (*PEFT, ("lora_magnitude_vector", (8,))), "partly"),
    "text": ("sdxl", "lora_te2_text_model_encoder_layers_3_mlp_fc1", LORA, "yes"),
    "compvis": ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k", LORA, "yes"),
    "hunyuan": ("hunyuan-video", "transformer.double_blocks.0.img_attn_qkv", LORA, "yes"),
    "half a pair": ("flux1", "transformer.x_embedder", PEFT[:1], "no"),
}
"""Family, stem, tensors, and the verdict of ComfyUI's own code."""


@pytest.mark.parametrize("name", FILES)
def test_the_answer_is_that_of_comfyui(name):
    family, stem, parts, expected = FILES[name]
    tensors = {f"{stem}.{end}": torch.ones(shape) for end, shape in parts}
    found = consumers.load_answer(tensors, "comfyui", (family,))
    assert found.word == expected, found
    assert found.reason or found.loads


@pytest.mark.parametrize("family", COMFYUI)
def test_every_linear_layer_can_be_exported_for_comfyui(family):
    """It looks up every weight of a network, so all of them can be trained."""
    denoiser = family_of(ROWS[family]).denoiser(tiny.tiny_pipeline(ROWS[family]))
    component = "unet" if "unet" in family_of(ROWS[family]).components.denoiser else "transformer"
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    modules = [f"{component}.{name}" for name, layer in denoiser.named_modules() if isinstance(layer, kinds)]
    assert modules
    assert consumers.unsupported_modules(family, "comfyui", modules) == []


def test_a_file_that_fits_several_families_has_one_answer(tmp_path):
    train("qwen-image", tmp_path / "adapter.safetensors")
    tensors = layouts.write_native(
        formats.read_adapter_file(tmp_path / "adapter.safetensors").deltas, "qwen-image"
    )
    families = ("qwen-image", "qwen-image-edit", "qwen-image-edit-plus")
    assert consumers.load_answer(tensors, "comfyui", families).loads
    assert consumers.load_answer(tensors, "comfyui", ("qwen-image", "wan")).word == "unknown"


def test_check_answers_for_a_file_that_lorakit_cannot_read(tmp_path):
    tensors = {f"diffusion_model.blocks.{n}.cross_attn.k.diff_b": torch.ones(8) for n in range(3)}
    file = storage.write_safetensors(tmp_path / "bias.safetensors", tensors)
    assert inspect.check_consumer_loads(file, "comfyui", "wan").loads
    assert inspect.check_consumer_loads(file, "diffusers", "wan").reason.startswith("no: ")


@pytest.mark.parametrize(("dtype", "bound"), [("fp16", 1e-3), ("bf16", 1e-2), ("fp32", 1e-6)])
def test_the_rounding_of_a_number_type_is_stated_and_small_factors_survive(dtype, bound, tmp_path):
    train("flux1-dev", tmp_path / "adapter.safetensors", std=1e-7)
    (file,) = formats.export_adapter(
        tmp_path / "adapter.safetensors", "comfyui", tmp_path / dtype, dtype=dtype
    )
    assert 0 < file.max_relative_error < bound
    assert dtype in file.summary()
    assert f"verified to {file.max_relative_error:.0e}" in file.summary()
    kinds = {tensor.dtype for tensor in storage.read_safetensors(file.path).values()}
    assert kinds == {{"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]}


def test_a_conversion_that_loses_much_is_refused_unless_allowed(tmp_path):
    full = {"transformer.x_embedder.diff": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    file = storage.write_safetensors(tmp_path / "full.safetensors", full)
    adapter = formats.read_adapter_file(file, "flux1")
    out = tmp_path / "lora.safetensors"
    with pytest.raises(ConfigError, match="lose more than 10 %") as caught:
        save_adapter(adapter, out, "diffusers", max_rank=2)
    assert "x_embedder" in str(caught.value)
    assert "--allow-loss" in str(caught.value)
    assert not out.exists()
    written = save_adapter(adapter, out, "diffusers", max_rank=2, allow_loss=True)
    assert written.approximation_error > 0.5
    assert save_adapter(adapter, tmp_path / "all.safetensors", "diffusers").approximation_error < 1e-5


@pytest.mark.parametrize("row", ["sd15", "flux1-dev", "qwen-image", "wan"])
def test_a_conversion_names_the_programs_that_read_it(row, tmp_path):
    train(row, tmp_path / "adapter.safetensors")
    adapter = formats.read_adapter_file(tmp_path / "adapter.safetensors")
    for layout in ("kohya", "native", "diffusers"):
        written = save_adapter(adapter, tmp_path / f"{layout}.safetensors", layout)
        tensors = storage.read_safetensors(written.path)
        for name in consumers.ALL_CONSUMERS:
            loads = consumers.load_answer(tensors, name, (adapter.family,)).loads
            assert (name in written.consumers) <= loads
    assert "comfyui" in save_adapter(adapter, tmp_path / "again.safetensors", "native").consumers


def test_a_widened_first_layer_tells_comfyui_its_new_shape(tmp_path):
    train("flux1-control", tmp_path / "adapter.safetensors")
    (file,) = export_exactly(tmp_path / "adapter.safetensors", "comfyui", tmp_path / "out")
    tensors = storage.read_safetensors(file.path)
    width = tensors["transformer.x_embedder.lora_A.weight"].shape[1]
    height = tensors["transformer.x_embedder.lora_B.weight"].shape[0]
    assert tensors["transformer.x_embedder.reshape_weight"].tolist() == [height, width]
