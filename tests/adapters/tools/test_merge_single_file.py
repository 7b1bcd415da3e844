"""Merging into single files: the tensors of the authors' layout, computed from the merged model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorakit.adapters.formats import LoadedAdapter, LoraDelta
from lorakit.adapters.tools.merge import merge_model
from lorakit.adapters.tools.weighted import WeightedAdapter
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import base_model
from tests.models.single_file.test_single_file import CASES, narrow_flux, original  # noqa: F401

FAMILIES = {"sd15": "sd15", "sdxl": "sdxl", "sd35": "sd3", "flux1": "flux1"}
TEXT = {"sd15": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2"), "sd35": (), "flux1": ()}


def linear_modules(network: torch.nn.Module, name: str) -> dict[str, torch.nn.Linear]:
    """Return the attention and feed-forward layers, and the last modulation, by full name."""
    ends = ("to_q", "to_k", "to_v", "to_out.0", "net.2", "proj_out", "norm_out.linear", "q_proj", "v_proj")
    ends = (*ends, "out_proj", "fc1", "proj_mlp", "add_q_proj")
    return {
        f"{name}.{path}": module
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and path.endswith(ends)
    }


def make_adapter(pipe: Any, case: str) -> LoadedAdapter:
    """Return a random LoRA for the denoiser and text encoders, and add it to the pipeline's weights."""
    generator, deltas = torch.Generator().manual_seed(1), {}
    denoiser = "unet" if hasattr(pipe, "unet") else "transformer"
    for name in (denoiser, *TEXT[case]):
        for module, layer in linear_modules(getattr(pipe, name), name).items():
            down = torch.randn(2, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 2, generator=generator)
            part, _, path = module.partition(".")
            is_text = part.startswith("text_encoder") and not path.startswith("text_model.")
            deltas[f"{part}.text_model.{path}" if is_text else module] = LoraDelta(down, up)
            layer.weight.data = layer.weight.data + 0.5 * deltas[next(reversed(deltas))].dense()
    return LoadedAdapter(deltas, "diffusers", possible_families=(FAMILIES[case],))


def merged_case(folder: Path, case: str) -> tuple[Path, WeightedAdapter, dict[str, torch.Tensor]]:
    """Write FILE.safetensors and `parts`; return the file, the adapter and the tensors that are expected."""
    make, _ = CASES[case]
    pipe, state = make()
    state = {name: value.clone().contiguous() for name, value in state.items()}
    pipe.save_pretrained(folder / "parts")
    save_file(state, folder / "base.safetensors", {"note": "of the authors"})
    adapter = make_adapter(pipe, case)
    if case == "flux1":
        expected = original.flux(copy.deepcopy(pipe.transformer))
    elif case == "sd35":
        expected = state | original.sd3(copy.deepcopy(pipe.transformer))
    else:
        expected = state | original.unet(pipe.unet)
        prefix = "cond_stage_model.transformer." if case == "sd15" else "conditioner.embedders.0.transformer."
        expected |= original.clip(pipe.text_encoder, prefix)
        if case == "sdxl":
            expected |= original.open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    assert any(not torch.equal(expected[name], state[name]) for name in state)
    return folder / "base.safetensors", WeightedAdapter(adapter, 0.5), expected


def assert_equal(merged: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert merged.keys() == expected.keys()
    wrong = [name for name in merged if not torch.equal(merged[name], expected[name])]
    assert not wrong


@pytest.mark.parametrize("case", ["sd15", "sdxl", "sd35", "flux1"])
@pytest.mark.usefixtures("narrow_flux")
def test_a_single_file_gets_the_weights_of_the_merged_model_in_its_own_layout(case, tmp_path):
    file, adapter, expected = merged_case(tmp_path, case)
    base, out = f"{file}@{tmp_path / 'parts'}", tmp_path / "merged.safetensors"
    count = merge_model(base, base_model.resolve_base(base), [adapter], out)
    assert count == len(adapter.adapter.deltas)
    assert_equal(storage.read_safetensors(out), expected)
    assert storage.read_safetensors_metadata(out) == {"note": "of the authors"}


@pytest.mark.parametrize("case", ["sd15", "sdxl"])
def test_a_folder_becomes_a_single_file_of_its_authors(case, tmp_path):
    _, adapter, expected = merged_case(tmp_path, case)
    out = tmp_path / "merged.safetensors"
    merge_model(str(tmp_path / "parts"), tmp_path / "parts", [adapter], out)
    assert_equal(storage.read_safetensors(out), expected)


def test_the_written_checkpoint_is_read_back_as_a_base_model(tmp_path):
    _, adapter, _ = merged_case(tmp_path, "sd15")
    out = tmp_path / "merged.safetensors"
    merge_model(str(tmp_path / "parts"), tmp_path / "parts", [adapter], out)
    merge_model(str(tmp_path / "parts"), tmp_path / "parts", [adapter], tmp_path / "folder")
    read = base_model.resolve_base(f"{out}@{tmp_path / 'parts'}")
    for part in ("unet", "vae"):
        (first,) = (read / part).glob("*.safetensors")
        (second,) = (tmp_path / "folder" / part).glob("*.safetensors")
        assert_equal(storage.read_safetensors(first), storage.read_safetensors(second))


@pytest.mark.parametrize("base", base_model.EMBEDDED_BASES)
def test_an_embedded_base_is_merged_by_its_name(base, tmp_path, capsys):
    from tests.sampling.test_diffusers_pipeline import write_adapter

    adapter = write_adapter(base, tmp_path)
    assert main.main(["merge", base, str(adapter), "--out", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged/model_index.json").is_file()
    capsys.readouterr()
    code = main.main(["merge", base, str(adapter), "--out", str(tmp_path / "merged.safetensors")])
    text = capsys.readouterr().err
    assert code == ConfigError.exit_code
    assert {"tiny-dit": "known for U-Nets only", "tiny-unet": "open_clip's"}[base] in text
    assert "authors' own single file" in text
    assert not (tmp_path / "merged.safetensors").exists()


def test_what_a_single_file_cannot_hold_is_refused(tmp_path):
    file, adapter, _ = merged_case(tmp_path, "sd15")
    base = f"{file}@{tmp_path / 'parts'}"
    folder = base_model.resolve_base(base)
    with pytest.raises(ConfigError, match="this file exists"):
        merge_model(base, folder, [adapter], file)
    foreign = LoraDelta(torch.ones(1, 3), torch.ones(3, 1))
    other = LoadedAdapter({"unet.no.such.module": foreign}, "diffusers", possible_families=("sd15",))
    with pytest.raises(ConfigError, match="does not fit this base model"):
        merge_model(base, folder, [WeightedAdapter(other)], tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
