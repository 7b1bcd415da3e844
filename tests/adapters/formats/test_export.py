"""Exported files compared with the programs that read them, and with the trained adapter."""

from __future__ import annotations

import json

import pytest
import torch

from lorakit import adapters
from lorakit.adapters import formats
from lorakit.adapters.formats import key_suffixes, layouts, module_names
from lorakit.core import checksums, storage
from tests import tiny
from tests.adapters.formats.runs import ALPHA, RANK, export_exactly, family_of, predict, train

NAMES = ["sd15", "sd15-v", "sd3", "sd35", "flux2-dev", "flux2-klein"]
LAYOUT = {"sd15": "kohya", "sd3": "diffusers", "flux2": "diffusers"}
KEYS = {  # as in files of the consumers
    "sd15": [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.lora_up.weight",
        "lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn2_to_k.alpha",
    ],
    "sd3": [
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "transformer.transformer_blocks.1.attn.to_out.0.lora_B.weight",
        "transformer.transformer_blocks.0.attn.to_add_out.lora_A.weight",
    ],
    "flux2-klein": [
        "transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight",
        "transformer.single_transformer_blocks.1.attn.to_qkv_mlp_proj.lora_B.weight",
        "transformer.single_transformer_blocks.0.attn.to_out.lora_A.weight",
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_loads_an_export_as_trained(name, tmp_path):
    trained = predict(name, train(name, tmp_path / "adapter.safetensors"))
    (exported,) = export_exactly(tmp_path / "adapter.safetensors", "diffusers", tmp_path / "exports")
    fresh = tiny.build(name)
    before = predict(name, fresh)
    fresh.load_lora_weights(str(exported.path.parent), weight_name=exported.path.name)
    after = predict(name, fresh)
    scale = before.abs().max()
    assert (after - trained).abs().max() <= 1e-5 * scale
    assert (after - before).abs().max() > 1e-2 * scale


@pytest.mark.parametrize("name", NAMES)
def test_an_export_has_the_layout_and_the_alphas_of_its_family(name, tmp_path):
    family = family_of(name)
    train(name, tmp_path / "adapter.safetensors")
    (exported,) = export_exactly(
        tmp_path / "adapter.safetensors", "comfyui", tmp_path, base=tiny.tiny_folder(name)
    )
    tensors = storage.read_safetensors(exported.path)
    assert exported.layout == LAYOUT[family.name]
    assert {"comfyui", "diffusers"} <= set(exported.consumers)
    assert exported.num_tensors == len(tensors)
    assert 0 <= exported.max_relative_error <= 1e-6
    assert set(KEYS.get(name, [])) <= set(tensors)
    alphas = {float(value) for key, value in tensors.items() if key.endswith(".alpha")}
    assert alphas == ({ALPHA} if exported.layout == "kohya" else set())
    assert all(value.dtype == torch.float32 for value in tensors.values())


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux2-dev"])
def test_an_export_read_back_equals_the_adapter_of_the_run(name, tmp_path):
    path = tmp_path / "adapter.safetensors"
    pipe = train(name, path)
    own = formats.read_adapter_file(path)
    (exported,) = export_exactly(path, "diffusers", tmp_path)
    back = formats.read_adapter_file(exported.path)
    assert own.deltas.keys() == back.deltas.keys()
    modules = dict(family_of(name).denoiser(pipe).named_modules())
    for module, delta in back.deltas.items():
        expected = modules[module.split(".", 1)[1]].get_delta_weight("default")
        for one in (delta, own.deltas[module]):
            assert (one.dense() - expected).abs().max() <= 1e-5 * expected.abs().max()
    again = tmp_path / "again.safetensors"
    export_exactly(exported.path, "diffusers", again)
    assert again.read_bytes() == exported.path.read_bytes(), "export -> import -> export must keep every byte"


def test_metadata_is_an_allow_list(tmp_path):
    path = tmp_path / "adapter.safetensors"
    train("sd15-v", path, caption="my cat in the garden", host="alices-laptop")
    (exported,) = export_exactly(path, "a1111", tmp_path / "alice", base=tiny.tiny_folder("sd15-v"))
    metadata = storage.read_safetensors_metadata(exported.path)
    own = json.loads(metadata.pop("lorakit"))
    hashed = metadata.pop("modelspec.hash_sha256")
    assert own["alpha"] == ALPHA
    assert set(own) == {
        *("type", "rank", "alpha", "family", "pipeline"),
        *("base_hash", "resolution", "trigger", "step", "recipe_hash"),
    }
    assert metadata == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": "Stable Diffusion 1.5 / 2.x LoRA",
        "modelspec.resolution": "64x64",
        "modelspec.trigger_phrase": "sks",
        "modelspec.usage_hint": "Write sks in the prompt.",
        "modelspec.prediction_type": "v",
        "ss_resolution": "(64, 64)",
        "ss_steps": "300",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "10",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
    }
    data = exported.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert hashed == f"0x{checksums.sha256_bytes(data[8 + length :])}"
    assert not any(canary in data for canary in (b"alice", b"/home", b"garden", b"laptop"))


def test_alpha_is_not_applied_twice(trained, tmp_path):
    """With alpha multiplied into the weights, a file with alpha != rank would be scaled again."""
    (exported,) = export_exactly(trained, "comfyui", tmp_path / "exports")
    metadata = storage.read_safetensors_metadata(exported.path)
    assert "lora_adapter_metadata" not in metadata
    assert json.loads(metadata["lorakit"])["alpha"] == RANK
    pipe = tiny.build("sd3")
    adapters.load_adapter({"transformer": pipe.transformer}, exported.path)
    direct = tiny.build("sd3")
    adapters.load_adapter({"transformer": direct.transformer}, trained)
    assert (predict("sd3", pipe) - predict("sd3", direct)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("width", "second", "architecture"),
    [
        (1536, False, "stable-diffusion-3-medium"),
        (1536, True, "stable-diffusion-3.5-medium"),
        (99, False, "stable-diffusion-3"),
    ],
)
def test_the_architecture_of_published_models_follows_their_width(width, second, architecture, tmp_path):
    names = ["transformer_blocks.0.attn.to_q"] + ["transformer_blocks.0.attn2.to_q"] * second
    tensors = {}
    for name in names:
        tensors[f"transformer.{name}.lora_A.weight"] = torch.ones(1, width)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.ones(width, 1)
    metadata = {"rank": 1, "alpha": 1.0, "family": "sd3"}
    storage.write_safetensors(tmp_path / "a.safetensors", tensors, adapters.pack_metadata(metadata))
    (exported,) = export_exactly(tmp_path / "a.safetensors", "diffusers", tmp_path / "out")
    assert (
        storage.read_safetensors_metadata(exported.path)["modelspec.architecture"] == f"{architecture}/lora"
    )


def test_kohyas_layout_has_one_alpha_for_modules_of_different_scales():
    """It must still be exact."""
    deltas = {
        f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.{part}": formats.LoraDelta(
            torch.randn(2, 8), torch.randn(8, 2), scale
        )
        for part, scale in (("to_q", 0.5), ("to_k", 3.0))
    }
    tensors = layouts.write_kohya(deltas, "sd15")
    assert {float(value) for key, value in tensors.items() if key.endswith("alpha")} == {1.0}
    for stem, parts in key_suffixes.group_by_module(tensors, "here").items():
        (module,) = module_names.resolve_key(stem, "sd15")
        back = key_suffixes.build_delta(parts, lambda rank: 1.0, "here")
        assert torch.allclose(back.dense(), deltas[module].dense(), rtol=1e-5, atol=1e-6)


def test_the_relative_error_equals_that_of_the_dense_matrices():
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(30, 3, generator=generator), torch.randn(3, 20, generator=generator)
    one = formats.LoraDelta(down, up, 2.0)
    other = formats.LoraDelta(down + 0.01, up - 0.02, 1.9)
    dense = 2.0 * (up @ down).double(), 1.9 * ((up - 0.02) @ (down + 0.01)).double()
    expected = float((dense[0] - dense[1]).norm() / dense[0].norm())
    assert formats.relative_error(one, other) == pytest.approx(expected, rel=1e-6)
    assert formats.relative_error(one, one) < 1e-12
    zero = formats.LoraDelta(down, torch.zeros(30, 3), 2.0)
    assert formats.relative_error(zero, zero) == 0
    assert formats.relative_error(zero, one) == 1


def test_kohyas_names_of_every_layer_become_dotted_again():
    for name in tiny.ROWS:
        layers = getattr(tiny.tiny_pipeline(name), family_of(name).components.denoiser).named_modules()
        modules = [path for path, layer in layers if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
        assert len(modules) >= 10
        assert [module_names.kohya_to_dotted(module.replace(".", "_")) for module in modules] == modules


def test_the_names_of_file_and_base_model_are_written_only_on_request(trained, tmp_path):
    (plain,) = export_exactly(trained, "comfyui", tmp_path / "dog.safetensors")
    assert b"dog" not in plain.path.read_bytes()[:4000]
    (named,) = export_exactly(trained, "comfyui", tmp_path / "cat.safetensors", include_names=True)
    metadata = storage.read_safetensors_metadata(named.path)
    assert metadata["ss_output_name"] == "cat"
    assert metadata["ss_sd_model_name"] == "secret-base"
    assert b"/home" not in named.path.read_bytes()[:4000]
