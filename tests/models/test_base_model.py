"""Resolving a recipe's base to a local folder; tests/network tests the hub."""

from __future__ import annotations

import pytest

from lorakit.core.errors import ConfigError
from lorakit.models import base_model


def test_embedded_bases_and_folders_resolve():
    for name in base_model.EMBEDDED_BASES:
        folder = base_model.resolve_base(name)
        assert (folder / "model_index.json").is_file()
        assert base_model.resolve_base(str(folder)) == folder


def test_the_error_for_an_unreachable_hub_names_the_remedy():
    with pytest.raises(ConfigError, match="the hub cannot be reached") as caught:
        base_model.resolve_base("nobody/nothing@0123abc")
    assert "remedy: check the network" in str(caught.value)


def test_hashes_depend_on_the_content_and_not_on_the_path(tmp_path):
    def write(folder, vae):
        (folder / "vae").mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
        (folder / "vae/x.safetensors").write_bytes(vae)
        (folder / "vae/notes.md").write_text(str(folder))  # not part of the model
        return folder

    a, b, c = (write(tmp_path / name, vae) for name, vae in (("a", b"1"), ("b", b"1"), ("c", b"2")))
    assert base_model.base_hash(a) == base_model.base_hash(b) != base_model.base_hash(c)
    assert base_model.component_hashes(a)[""] == base_model.component_hashes(c)[""]
    assert base_model.component_hashes(a)["vae"] != base_model.component_hashes(c)["vae"]
