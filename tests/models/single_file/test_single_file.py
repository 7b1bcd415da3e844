"""Single-file checkpoints become folders with exactly the same weights, or are refused before any work."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.models import base_model, families
from lorakit.models.single_file import layout
from tests import tiny
from tests.models.single_file import original
from tests.network import hub as hubs
from tests.network.test_hub import Client


def _wide_clip() -> Any:
    """Return a second text encoder of another width, which distinguishes the two."""
    return tiny.parts.clip_text(tiny.clip_tokenizer(), projection=True, hidden_size=24, projection_dim=24)


def _sd15() -> tuple[Any, original.State]:
    pipe = tiny.build("sd15")
    text = original.clip(pipe.text_encoder, "cond_stage_model.transformer.")
    return pipe, original.unet(pipe.unet) | original.vae(pipe.vae) | text


def _sdxl() -> tuple[Any, original.State]:
    pipe = tiny.build("sdxl")
    pipe.text_encoder_2 = _wide_clip()
    text = original.clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
    text |= original.open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    return pipe, original.unet(pipe.unet) | original.vae(pipe.vae) | text


def _sd35() -> tuple[Any, original.State]:
    pipe = tiny.build("sd35")
    pipe.text_encoder_2 = _wide_clip()
    pipe.text_encoder.text_projection.weight.data.copy_(torch.eye(16))  # such files omit it
    text = original.clip(pipe.text_encoder, "text_encoders.clip_l.transformer.")
    del text["text_encoders.clip_l.transformer.text_projection.weight"]
    text |= original.clip(pipe.text_encoder_2, "text_encoders.clip_g.transformer.")
    return pipe, original.sd3(pipe.transformer) | original.vae(pipe.vae) | text


def _sd3_with_t5() -> tuple[Any, original.State]:
    pipe = tiny.build("sd3")
    state = pipe.text_encoder_3.state_dict()
    del state["encoder.embed_tokens.weight"]  # the same tensor under another name
    text = {f"text_encoders.t5xxl.transformer.{name}": value for name, value in state.items()}
    return pipe, original.sd3(pipe.transformer) | text


def _flux() -> tuple[Any, original.State]:
    pipe = tiny.build("flux1-dev")
    return pipe, original.flux(pipe.transformer)


@pytest.fixture
def narrow_flux(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' table fits any width, but has the published one in its code."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    entry = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    mapping = entry["checkpoint_mapping_fn"]
    code = mapping.__code__
    narrow = code.replace(co_consts=tuple(16 if value == 3072 else value for value in code.co_consts))
    assert narrow != code
    monkeypatch.setitem(
        entry,
        "checkpoint_mapping_fn",
        types.FunctionType(narrow, mapping.__globals__, closure=mapping.__closure__),
    )


CASES = {
    "sd15": (_sd15, {"unet", "vae", "text_encoder"}),
    "sdxl": (_sdxl, {"unet", "vae", "text_encoder", "text_encoder_2"}),
    "sd35": (_sd35, {"transformer", "vae", "text_encoder", "text_encoder_2"}),
    "sd3-t5": (_sd3_with_t5, {"transformer", "text_encoder_3"}),
    "flux1": (_flux, {"transformer"}),
}


def _write(folder: Path, case: str, dtype: torch.dtype = torch.float32) -> tuple[Any, str]:
    """Write the file, and a folder without the weights that the file has; return (pipeline, base)."""
    make, in_file = CASES[case]
    pipe, state = make()
    pipe.save_pretrained(folder / "parts")
    for name in in_file:
        for weights in (folder / "parts" / name).glob("*.safetensors"):
            weights.unlink()
    file = folder / "model.safetensors"
    save_file({name: value.to(dtype).contiguous() for name, value in state.items()}, file)
    return pipe, f"{file}@{folder / 'parts'}"


@pytest.mark.usefixtures("narrow_flux")
@pytest.mark.parametrize("case", CASES)
def test_the_folder_has_the_weights_of_the_file(case, tmp_path):
    pipe, spec = _write(tmp_path, case)
    folder = base_model.resolve_base(spec)
    loaded = families.detect_family(folder).load(folder, dtype=torch.float32)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            mine, theirs = getattr(loaded, name).state_dict(), part.state_dict()
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name
    assert loaded.tokenizer("a red circle").input_ids == pipe.tokenizer("a red circle").input_ids
    settings = [{k: v for k, v in p.scheduler.config.items() if k[0] != "_"} for p in (loaded, pipe)]
    assert settings[0] == settings[1]


def test_a_file_is_converted_once_and_again_after_any_change(tmp_path):
    _, spec = _write(tmp_path, "sd15")
    first = base_model.resolve_base(spec)
    before = (first / "unet/diffusion_pytorch_model.safetensors").stat()
    assert base_model.resolve_base(spec) == first
    assert (first / "unet/diffusion_pytorch_model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    (first / base_model.MODEL_INDEX).unlink()  # as after a crash during the conversion
    (first / "vae/config.json").write_text("{")
    assert base_model.resolve_base(spec) == first
    families.detect_family(first).load(first, dtype=torch.float32)
    scheduler = tmp_path / "parts/scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("epsilon", "v_prediction"))
    assert base_model.resolve_base(spec) != first
    assert not list(tmp_path.glob("*.lock"))


def test_half_precision_stays_and_8_bits_become_bfloat16(tmp_path):
    _, spec = _write(tmp_path, "sd15", torch.float16)
    weights = storage.read_safetensors(
        base_model.resolve_base(spec) / "unet/diffusion_pytorch_model.safetensors"
    )
    assert {value.dtype for value in weights.values()} == {torch.float16}
    (tmp_path / "eight").mkdir()
    _, spec = _write(tmp_path / "eight", "sd15", torch.float8_e4m3fn)
    folder = base_model.resolve_base(spec)
    weights = storage.read_safetensors(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    families.detect_family(folder).load(folder, dtype=torch.float32)


def _refusal(spec: str, words: str, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error, match=words) as caught:
        base_model.resolve_base(spec)
    assert "remedy" in str(caught.value)
    return str(caught.value)


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path):
    file, converted = tmp_path / "model.ckpt", tmp_path / "converted.safetensors"
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, file)
    command = _refusal(str(file), "pickled files").partition("python -c ")[2].partition(" OLD")[0]
    subprocess.run([sys.executable, "-c", shlex.split(command)[0], str(file), str(converted)], check=True)
    assert torch.equal(storage.read_safetensors(converted)["a"], torch.ones(2))
    for suffix in layout.PICKLE_SUFFIXES:
        (tmp_path / f"empty{suffix}").touch()
        _refusal(str(tmp_path / f"empty{suffix}"), "pickled files")


def test_other_files_are_refused_before_any_work(tmp_path):
    _refusal(str(tmp_path / "absent.safetensors"), "no such file")
    (tmp_path / "q.gguf").write_bytes(b"GGUF")
    _refusal(str(tmp_path / "q.gguf"), "GGUF")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense and more of it")
    _refusal(str(tmp_path / "bad.safetensors"), "not a safetensors file", DataError)
    name = "double_blocks.0.img_attn.qkv.scale_weight"
    save_file({name: torch.ones(1)}, tmp_path / "scaled.safetensors")
    assert "nf4" in _refusal(str(tmp_path / "scaled.safetensors"), "quantized checkpoint")
    save_file({"what.ever": torch.ones(1)}, tmp_path / "other.safetensors")
    assert "@PARTS" in _refusal(str(tmp_path / "other.safetensors"), "layout is unknown")


def test_wrong_settings_and_missing_components_are_reported(tmp_path):
    _, spec = _write(tmp_path, "sd15")
    config = tmp_path / "parts/unet/config.json"
    right = config.read_text()
    config.write_text(json.dumps(json.loads(right) | {"cross_attention_dim": 8}))
    _refusal(spec, "does not fit the settings")
    config.write_text(json.dumps(json.loads(right) | {"layers_per_block": 2}))
    _refusal(spec, "does not fit the settings")
    config.write_text(right)
    state = storage.read_safetensors(tmp_path / "model.safetensors")
    del state["model.diffusion_model.out.2.weight"]
    save_file(state, tmp_path / "short.safetensors")
    _refusal(f"{tmp_path}/short.safetensors@{tmp_path}/parts", "1 tensors are missing.*conv_out.weight")
    save_file({n: v for n, v in state.items() if "first_stage" not in n}, tmp_path / "bare.safetensors")
    _refusal(f"{tmp_path}/bare.safetensors@{tmp_path}/parts", "has weights for vae")
    _refusal(f"{tmp_path}/model.safetensors@{tmp_path}", "not a diffusers folder")


def test_without_parts_the_settings_come_from_the_repository_that_diffusers_names(tmp_path):
    """Without a network this is an error with a remedy."""
    names = {"model.diffusion_model.output_blocks.11.0.skip_connection.weight": torch.ones(1)}
    save_file(names, tmp_path / "v1.safetensors")
    text = _refusal(str(tmp_path / "v1.safetensors"), "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert "FILE.safetensors@FOLDER" in text
    for names, source in [
        (["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"], "xl-base-1.0"),
        (["joint_blocks.37.x_block.mlp.fc1.weight"], "stable-diffusion-3.5-large"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "FLUX.1-schnell"),
        (["distilled_guidance_layer.in_proj.bias"], "Chroma1-HD"),
        (["txt_in.text_norm.weight"], "Qwen-Image-2.1"),
        (["txtfusion.projector.weight"], "Krea-2-Raw"),
    ]:
        shapes = {name: torch.empty(2, 2, device="meta") for name in names}
        assert layout.default_repo(shapes, "x").endswith(source)


def test_the_spec_of_a_single_file_becomes_absolute(tmp_path, monkeypatch):
    _, spec = _write(tmp_path, "sd15")
    monkeypatch.chdir(tmp_path)
    assert base_model.absolute_spec("model.safetensors@parts") == spec
    assert (
        base_model.absolute_spec("model.safetensors@team/base") == f"{tmp_path}/model.safetensors@team/base"
    )
    assert base_model.pin_revision(spec) == spec


def test_only_missing_components_are_downloaded_from_the_hub(tmp_path):
    pipe, state = _sd15()
    pipe.save_pretrained(tmp_path / "parts")
    file = tmp_path / "no-text.safetensors"
    save_file({n: v.contiguous() for n, v in state.items() if "cond_stage" not in n}, file)
    hub = hubs.Hub()
    files = [path for path in (tmp_path / "parts").rglob("*") if path.is_file()]
    hub.commit("v1", {path.relative_to(tmp_path / "parts").as_posix(): path.read_bytes() for path in files})
    with hubs.running(hub) as address:
        answer = Client(tmp_path / "home", address)(f"{file}@team/base@v1")
    assert answer.code == 0, answer.error
    assert [path for path in hub.downloaded() if path.endswith(".safetensors")] == [
        "text_encoder/model.safetensors"
    ]
    theirs = storage.read_safetensors(tmp_path / "parts/unet/diffusion_pytorch_model.safetensors")
    mine = storage.read_safetensors(Path(answer.folder) / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
