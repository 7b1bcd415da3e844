"""Loading model folders: complete ones load, and others are refused with a reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from lorakit.core import storage
from lorakit.core.errors import ConfigError, LorakitError
from lorakit.models import families
from tests import tiny
from tests.models.families.common import all_rows, images_for

CAPTIONS = ["a red circle", "a small blue square"]


@pytest.fixture
def folder(tmp_path):
    """Return a copy of a tiny SD3 folder without T5, for damage."""
    return shutil.copytree(tiny.tiny_folder("sd3-no-t5"), tmp_path / "base")


def load(path, **options):
    return families.detect_family(path).load(path, dtype=torch.float32, **options)


def rewrite_index(folder, **changes):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


@all_rows
def test_a_loaded_pipeline_is_the_saved_one_frozen(name):
    pipe, original = load(tiny.tiny_folder(name)), tiny.tiny_pipeline(name)
    assert type(pipe) is type(original)
    for part, module in original.components.items():
        if isinstance(module, torch.nn.Module):
            loaded = getattr(pipe, part)
            assert not loaded.training
            assert not any(p.requires_grad for p in loaded.parameters())
            for key, value in module.state_dict().items():
                assert torch.equal(value, loaded.state_dict()[key]), (part, key)


def test_every_component_gets_the_dtype(folder):
    family = families.detect_family(folder)
    pipe = family.load(folder, dtype=torch.bfloat16)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(parts) == 4
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}
    conds = family.encode_text(pipe, CAPTIONS)
    assert conds[0]["prompt_embeds"].dtype == torch.bfloat16
    shape = family.latent_shape(pipe, 32, 32)
    images = family.sample(
        pipe,
        family.collate(conds),
        None,
        torch.randn(2, *shape),
        num_inference_steps=2,
        guidance_scale=1.0,
        width=32,
        height=32,
    )
    assert len(images) == 2


@all_rows
def test_captions_are_encoded_with_the_text_components_alone(name):
    """Without the denoiser, and without the VAE unless the pipeline cannot be built without it."""
    path, size = tiny.tiny_folder(name), tiny.ROWS[name].sizes[0]
    family, whole = families.detect_family(path), tiny.tiny_pipeline(name)
    parts = {part for part in whole.components if part.startswith(family.text.component_prefixes)}
    pipe = load(path, only={part for part in parts if getattr(whole, part) is not None})
    for attribute in tiny.ROWS[name].unsaved_attributes:
        setattr(pipe, attribute, getattr(whole, attribute))
    assert pipe.vae is None or "vae" in family.components.always_loaded
    assert family.denoiser(pipe) is None
    images = images_for(name, size)
    expected = family.encode_text(whole, CAPTIONS, size, images)
    for ours, theirs in zip(family.encode_text(pipe, CAPTIONS, size, images), expected, strict=True):
        assert all(torch.allclose(ours[key].float(), theirs[key].float(), 0, 1e-6) for key in theirs)
    assert family.denoiser(pipe) is None
    assert family.latent_shape(pipe, *size) == family.latent_shape(whole, *size)
    assert family.size_multiple(pipe) == family.size_multiple(whole)
    assert load(path, only={"vae"}).vae is not None


@all_rows
def test_sizes_are_known_without_reading_weights(name):
    path, whole = tiny.tiny_folder(name), tiny.tiny_pipeline(name)
    family = families.detect_family(path)
    with torch.device("meta"):
        pipe = family.load(path, dtype=torch.float32, only=())
    assert family.denoiser(pipe) is None
    assert family.size_multiple(pipe) == family.size_multiple(whole)
    for width, height in tiny.ROWS[name].sizes:
        assert width % family.size_multiple(pipe) == height % family.size_multiple(pipe) == 0
        assert family.latent_shape(pipe, width, height) == family.latent_shape(whole, width, height)


def test_a_base_model_can_state_its_own_text_length(folder):
    (folder / "lorakit.json").write_text('{"max_sequence_length": 16}')
    family = families.detect_family(folder)
    assert family.encode_text(load(folder), CAPTIONS)[0]["prompt_embeds"].shape[0] == 77 + 16
    assert (
        family.encode_text(tiny.tiny_pipeline("sd3-no-t5"), CAPTIONS)[0]["prompt_embeds"].shape[0] == 77 + 256
    )


def test_files_named_fp16_load(folder):
    for part in ("transformer", "vae"):
        plain = folder / part / "diffusion_pytorch_model.safetensors"
        plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    for part in ("text_encoder", "text_encoder_2"):
        (folder / part / "model.safetensors").rename(folder / part / "model.fp16.safetensors")
    pipe = load(folder)
    assert torch.equal(
        pipe.vae.encoder.conv_in.weight, tiny.tiny_pipeline("sd3-no-t5").vae.encoder.conv_in.weight
    )


def test_sharded_weights_load_and_a_missing_shard_is_refused(tmp_path):
    tiny.build("sd15").save_pretrained(tmp_path / "base", max_shard_size="40KB")
    assert len(list((tmp_path / "base/unet").glob("*.safetensors"))) > 1
    assert torch.equal(
        load(tmp_path / "base").unet.conv_in.weight, tiny.tiny_pipeline("sd15").unet.conv_in.weight
    )
    next((tmp_path / "base/unet").glob("*-00001-*.safetensors")).unlink()
    with pytest.raises(ConfigError, match="weight files are missing, first diffusion_pytorch_model-00001"):
        load(tmp_path / "base")


@pytest.mark.parametrize(
    ("name", "size"), [("auraflow", (136, 64)), ("sd3", (64, 264)), ("hidream", (64, 32))]
)
def test_sizes_that_are_too_large_for_the_network_are_refused(name, size):
    family, pipe = families.get_family(name), tiny.tiny_pipeline(name)
    with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]} pixels"):
        family.latent_shape(pipe, *size)


def _no_index(folder):
    (folder / "model_index.json").unlink()


def _broken_index(folder):
    (folder / "model_index.json").write_text("{")


def _other_pipeline(folder):
    rewrite_index(folder, _class_name="NoSuchPipeline")


def _own_pipeline(folder):
    rewrite_index(folder, _class_name=["pipeline", "MyPipeline"])


def _own_code(folder):
    (folder / "transformer" / "my_model.py").write_text("raise SystemExit('ran')")
    rewrite_index(folder, transformer=["my_model", "MyModel"])


def _unknown_class(folder):
    rewrite_index(folder, transformer=["diffusers", "NoSuchModel"])


def _no_component(folder):
    shutil.rmtree(folder / "vae")


def _no_weights(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def _pickled(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def _torn(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def _tensor_missing(folder):
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = storage.read_safetensors(weights)
    tensors.pop("proj_out.weight")
    storage.write_safetensors(weights, tensors, {"format": "pt"})


def _text_tensor_missing(folder):
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = storage.read_safetensors(weights)
    tensors.pop("text_projection.weight")
    storage.write_safetensors(weights, tensors, {"format": "pt"})


def _bad_setting(folder):
    (folder / "lorakit.json").write_text('{"max_sequence_length": "long"}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_index, "model_index.json is missing"),
        (_broken_index, "not valid JSON"),
        (_other_pipeline, "no family for NoSuchPipeline(.|\n)*diffusers has no such pipeline"),
        (_own_pipeline, "foreign code is never run"),
        (_own_code, "foreign code is never run"),
        (_unknown_class, "unknown class diffusers.NoSuchModel"),
        (_no_component, "component's folder is missing(.|\n)*vae"),
        (_no_weights, "the weights are missing(.|\n)*vae"),
        (_pickled, "only pickled weights, which are never opened(.|\n)*vae"),
        (_torn, "cannot load the model"),
        (_tensor_missing, "1 tensors are missing from the weights, first proj_out.weight(.|\n)*transformer"),
        (_text_tensor_missing, "1 tensors are missing from the weights, first text_projection.weight"),
        (_bad_setting, "max_sequence_length must be a positive whole number(.|\n)*lorakit.json"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(folder, damage, words):
    damage(folder)
    with pytest.raises(LorakitError, match=words):
        load(folder)


def test_unknown_components_and_families_are_refused(folder):
    with pytest.raises(ConfigError, match="the model has no unet"):
        load(folder, only={"unet"})
    with pytest.raises(ConfigError, match=r"known: .*sd15"):
        families.get_family("nonesuch")
    assert families.get_family("sd3") is families.detect_family(folder)


def test_families_are_found_without_torch(folder):
    code = (
        "import sys; from lorakit.models import families; families.detect_family(sys.argv[1]).describe(); "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == 0
