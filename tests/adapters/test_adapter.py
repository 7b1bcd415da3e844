"""`lorakit.Adapter`, the public class."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lorakit.adapters.adapter import Adapter
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError, LorakitError
from tests import tiny
from tests.adapters.formats.runs import ALPHA, RANK, train, train_method


@pytest.fixture
def file(tmp_path):
    train("sd15", tmp_path / "theirs.safetensors")
    return tmp_path / "theirs.safetensors"


def test_an_adapter_has_the_attributes_of_its_file(file):
    adapter = Adapter.load(file)
    assert (adapter.family, adapter.method, adapter.rank) == ("sd15", "lora", RANK)
    tensors = storage.read_safetensors(file)
    assert adapter.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert adapter.metadata == storage.read_safetensors_metadata(file)
    assert adapter.lorakit_metadata["trigger"] == "sks"
    assert repr(adapter) == f"Adapter({str(file)!r}, family='sd15', method='lora', rank={RANK})"


@pytest.mark.parametrize("format", ["diffusers", "kohya", "native"])
def test_a_saved_adapter_has_the_same_delta_weights(format, tmp_path):
    train("sd3", tmp_path / "theirs.safetensors")
    adapter = Adapter.load(tmp_path / "theirs.safetensors")
    saved = adapter.save(tmp_path / "ours.safetensors", format=format)
    assert (saved.path, saved.layout) == (tmp_path / "ours.safetensors", format)
    again = Adapter.load(saved.path)
    assert again.layout == format
    assert again.deltas.keys() == adapter.deltas.keys()
    for module, delta in again.deltas.items():
        assert torch.allclose(delta.dense(), adapter.deltas[module].dense(), atol=1e-5)
    alphas = {float(t) for key, t in storage.read_safetensors(saved.path).items() if key.endswith(".alpha")}
    assert alphas == ({ALPHA} if format == "kohya" else set())


@pytest.mark.parametrize(("base", "format"), [("sd15", "diffusers"), ("sd15", "kohya"), ("sdxl", "kohya")])
def test_a_saved_adapter_has_the_vectors_of_its_new_token_beside_it(base, format, tmp_path):
    file = tmp_path / "theirs.safetensors"
    entries = {"token": "my-dog", "num_vectors": 2, "initializer_token": "dog"}
    train(base, file, textual_inversion=entries)
    encoders = ["text_encoder"] if base == "sd15" else ["text_encoder", "text_encoder_2"]
    vectors = {f"{name}.embeddings.token_embedding.learned": torch.randn(2, 8) for name in encoders}
    metadata = storage.read_safetensors_metadata(file)
    storage.write_safetensors(file, storage.read_safetensors(file) | vectors, metadata)
    adapter = Adapter.load(file)
    saved = adapter.save(tmp_path / "ours.safetensors", format=format)
    assert saved.token_file == tmp_path / "my-dog.safetensors"
    written = storage.read_safetensors(saved.token_file)
    assert len(written) == len(encoders)
    assert all(any(torch.equal(one, other) for other in vectors.values()) for one in written.values())
    with pytest.raises(ConfigError, match="same name as that of the adapter"):
        adapter.save(tmp_path / "new/my-dog.safetensors", format=format)
    with pytest.raises(ConfigError, match="same name as that of the adapter"):
        adapter.export("diffusers", tmp_path / "new/my-dog.safetensors")


def test_the_family_can_be_given_for_a_file_that_does_not_name_it(file, tmp_path):
    bare = storage.write_safetensors(tmp_path / "bare.safetensors", storage.read_safetensors(file))
    assert Adapter.load(bare, family="sdxl").family == "sdxl"


def test_an_export_is_a_file_for_its_consumer(file, tmp_path):
    (exported,) = Adapter.load(file).export("comfyui", tmp_path / "exports", base=tiny.tiny_folder("sd15"))
    assert exported.path == tmp_path / "exports" / "theirs-kohya.safetensors"
    assert "comfyui" in exported.consumers
    assert Adapter.load(exported.path).inspect()["consumers"]["comfyui"] == "yes"


def test_the_description_has_the_values_of_the_command(file):
    description = Adapter.load(file).inspect()
    assert (description["families"], description["types"]) == (["sd15"], {"lora": description["ranks"]["4"]})
    assert description["finite"]


def test_a_run_folder_is_an_adapter(file, tmp_path):
    run = tmp_path / "dog"
    storage.copy_file(file, run / "adapter.safetensors")
    adapter = Adapter.load(run)
    (exported,) = adapter.export("comfyui", tmp_path / "exports")
    assert exported.path.name == "dog-kohya.safetensors"
    with pytest.raises(ConfigError, match="must not replace the adapter"):
        adapter.save(run / "adapter.safetensors")


def test_dora_needs_the_base_model_to_be_saved(tmp_path):
    train_method("sd15", tmp_path / "dora.safetensors", "dora")
    adapter = Adapter.load(tmp_path / "dora.safetensors")
    assert adapter.method == "dora"
    with pytest.raises(ConfigError, match="depends on the weights of the base model"):
        adapter.save(tmp_path / "out.safetensors", format="kohya")
    saved = adapter.save(tmp_path / "out.safetensors", format="kohya", base=tiny.tiny_folder("sd15"))
    assert Adapter.load(saved.path).method == "dora"


def test_wrong_arguments_and_files_are_errors_of_lorakit(file, tmp_path):
    with pytest.raises(ConfigError, match="there is no such adapter"):
        Adapter.load(tmp_path / "missing.safetensors")
    with pytest.raises(ConfigError, match="there is no adapter in this folder"):
        Adapter.load(tmp_path)
    broken = storage.write_safetensors(tmp_path / "broken.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(DataError, match="unknown adapter layout"):
        Adapter.load(broken)
    adapter = Adapter.load(file)
    with pytest.raises(ConfigError, match="unknown layout 'peft'"):
        adapter.save(tmp_path / "out.safetensors", format="peft")
    with pytest.raises(ConfigError, match=r"must be a \.safetensors file"):
        adapter.save(tmp_path / "out")
    with pytest.raises(LorakitError, match="unknown consumer 'fooocus'"):
        adapter.export("fooocus", tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_importing_lorakit_does_not_import_torch():
    code = "import sys, lorakit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
