"""Every family, consumer and method: the consumer adds to each weight what peft trained."""

from __future__ import annotations

import functools
import logging
import re

import pytest
from peft.tuners.tuners_utils import BaseTunerLayer

from lorakit.adapters import formats
from lorakit.adapters.formats import consumers
from lorakit.core import storage
from lorakit.models import families
from tests import tiny
from tests.adapters.formats import webui
from tests.adapters.formats.runs import family_of, predict, train, train_method

TEXTS = {
    "sd15": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
    "flux1-dev": ("text_encoder",),
}
TEXTS["sd3"] = TEXTS["sdxl"]
LAYOUTS = {"kohya", "native", "diffusers"}
METHODS = ["lora", "rslora", "dora", "loha", "lokr", "lokr-dense", "oft"]
CASES = [(name, method) for name in ("sd15", "sd3", "lumina2", "flux1-dev") for method in METHODS]


@functools.cache
def weights(name):
    """Return the tiny base model's weights by `<component>.<module>`, with the names of published files."""
    pipe = tiny.tiny_pipeline(name)
    found = {}
    for component in (family_of(name).components.denoiser, *TEXTS.get(name, ())):
        for key, value in getattr(pipe, component).state_dict().items():
            if key.endswith(".weight"):
                module = re.sub(r"^encoder\.layers", "text_model.encoder.layers", key.removesuffix(".weight"))
                found[f"{component}.{module}"] = value
    return found


def check(found, expected, where):
    for module, difference in expected.items():
        error = (found[module] - difference.double()).norm() / difference.norm()
        assert error < 1e-5, f"{where}: {module} is off by {error}"
    for module in found.keys() - expected.keys():
        assert not found[module].any(), f"{where}: {module} was not trained"


def as_webui(name, file):
    return webui.differences(storage.read_safetensors(file), family_of(name).name, weights(name))


def as_diffusers(name, file):
    """Load with diffusers' loader into a new pipeline, and return the difference it adds to each weight."""
    pipe = tiny.build(name)
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    else:
        family_of(name).denoiser(pipe).load_lora_adapter(str(file.parent), weight_name=file.name)
    found = {}
    for component in (family_of(name).components.denoiser, *TEXTS.get(name, ())):
        for path, module in getattr(pipe, component).named_modules():
            if isinstance(module, BaseTunerLayer):
                before = module.base_layer.weight.clone()
                plain = not any(module.use_dora.values())
                if not plain:
                    module.merge()
                stem = re.sub(r"^encoder\.layers", "text_model.encoder.layers", path)
                added = (
                    module.get_delta_weight(module.active_adapter[0])
                    if plain
                    else module.base_layer.weight - before
                )
                found[f"{component}.{stem}"] = added
    return found


@pytest.mark.parametrize("name", tiny.ROWS)
def test_every_family_loads_everywhere_as_trained(name, tmp_path, caplog):
    expected = train_method(name, tmp_path / "adapter.safetensors", "lora", texts=TEXTS.get(name, ()))
    exported = formats.export_adapter(
        tmp_path / "adapter.safetensors", "all", tmp_path / "out", base=tiny.tiny_folder(name), dtype="fp32"
    )
    readers = [consumer for file in exported for consumer in file.consumers]
    assert sorted(readers) == sorted(set(readers) & set(consumers.loader_rules(family_of(name).name)))
    assert set(readers) >= set(consumers.loader_rules(family_of(name).name)) - {
        "a1111" if TEXTS.get(name) else ""
    }
    for file in exported:
        assert file.max_relative_error < 1e-6
        assert not file.approximated_modules
        if {"comfyui", "a1111"} & set(file.consumers):
            check(as_webui(name, file.path), expected, file.path.name)
        if "diffusers" in file.consumers:
            with caplog.at_level(logging.WARNING):
                check(as_diffusers(name, file.path), expected, file.path.name)
            assert "unexpected keys" not in caplog.text
            assert "missing keys" not in caplog.text


@pytest.mark.parametrize(("name", "method"), CASES)
def test_every_method_loads_everywhere_as_trained(name, method, tmp_path):
    texts = TEXTS.get(name, ()) if method in ("rslora", "dora") else ()
    expected = train_method(name, tmp_path / "adapter.safetensors", method, texts=texts)
    exported = formats.export_adapter(
        tmp_path / "adapter.safetensors", "all", tmp_path / "out", base=tiny.tiny_folder(name), dtype="fp32"
    )
    for file in exported:
        assert file.approximation_error < 1e-5
        read = as_diffusers if file.consumers == ("diffusers",) else as_webui
        check(read(name, file.path), expected, file.path.name)


def test_convolutions_and_feed_forward_layers_load_with_every_method(tmp_path):
    """Not only attention: convolutions, feed-forward and time projections too."""
    endings = [
        "to_q",
        "proj_in",
        "ff.net.0.proj",
        "conv1",
        "time_emb_proj",
        "conv_shortcut",
        "conv_in",
        "conv_out",
    ]
    for method in ("lora", "dora", "loha", "lokr"):
        folder = tmp_path / method
        expected = train_method("sd15", folder / "adapter.safetensors", method, targets=endings)
        exported = formats.export_adapter(
            folder / "adapter.safetensors", "all", folder, base=tiny.tiny_folder("sd15"), dtype="fp32"
        )
        for file in exported:
            read = as_diffusers if "diffusers" in file.consumers else as_webui
            check(read("sd15", file.path), expected, file.path.name)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux1-dev", "z-image", "lumina2", "pixart-sigma"])
def test_a_prediction_with_the_exported_file_is_the_trained_one(name, tmp_path):
    trained = predict(name, train(name, tmp_path / "adapter.safetensors"))
    before = predict(name, tiny.build(name))
    exported = formats.export_adapter(
        tmp_path / "adapter.safetensors", "all", tmp_path / "exports", dtype="fp32"
    )
    for file in exported:
        fresh = tiny.build(name)
        for module, delta in formats.read_adapter_file(file.path).deltas.items():
            layer = family_of(name).denoiser(fresh).get_submodule(module.split(".", 1)[1])
            layer.weight.data += delta.dense().reshape(layer.weight.shape)
        assert (predict(name, fresh) - trained).abs().max() <= 1e-5 * before.abs().max()
        assert (trained - before).abs().max() > 1e-2 * before.abs().max()


def test_every_family_can_be_exported():
    names = {family.name for family in families.FAMILIES}
    for consumer in consumers.ALL_CONSUMERS.values():
        assert set(consumer.rules) <= names | {"anima"}
    for name in names:
        rules = consumers.loader_rules(name)
        assert rules
        assert {layout for rule in rules.values() for layout in rule.layouts} <= LAYOUTS
    served = [name for name in names if "comfyui" in consumers.loader_rules(name)]
    assert len(served) >= 30


def test_diffusers_own_names_of_anima_agree_with_the_native_table(tmp_path):
    """diffusers converts the file for ComfyUI itself: every module of the table, also outside blocks."""
    layers = r".*\.(to_[qkv]|to_out\.0|net\.0\.proj|net\.2|linear_[12]|proj)|proj_out"
    expected = train_method("anima", tmp_path / "adapter.safetensors", "lora", targets=layers)
    assert {module.split(".")[1] for module in expected} == {
        "transformer_blocks", "norm_out", "time_embed", "patch_embed", "proj_out",
    }  # fmt: skip
    (file,) = formats.export_adapter(
        tmp_path / "adapter.safetensors", "comfyui", tmp_path / "out", dtype="fp32"
    )
    keys = set(storage.read_safetensors(file.path))
    assert all(key.startswith("diffusion_model.") for key in keys)
    check(as_diffusers("anima", file.path), expected, file.path.name)
