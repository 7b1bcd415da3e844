"""Adapters taken apart, put together and merged: numbers against the plain sum of matrices."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.formats import LoraDelta, low_rank
from lorakit.adapters.tools import combine, extract, inspect, merge
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from tests import tiny
from tests.adapters.formats.runs import predict, train, train_kind


@pytest.fixture
def pair(tmp_path):
    """Two adapters of one base, the second of part of the modules."""
    train("sd3", tmp_path / "one.safetensors")
    train("sd3", tmp_path / "two.safetensors", targets=["to_q", "to_k"], std=0.1)
    return [formats.read_adapter_file(tmp_path / name) for name in ("one.safetensors", "two.safetensors")]


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_concatenation_is_exact(pair):
    made = combine.combine_adapters([(pair[0], 0.7), (pair[1], -0.4)])
    assert made.keys() == pair[0].changes.keys()
    for module, change in made.items():
        total = 0.7 * pair[0].changes[module].delta()
        if module in pair[1].changes:
            total = total - 0.4 * pair[1].changes[module].delta()
            assert change.rank == 8
        assert off(change.delta(), total) < 1e-6


def test_svd_is_the_best_of_its_rank(pair):
    made = combine.combine_adapters([(pair[0], 1.0), (pair[1], 1.0)], "svd", rank=3)
    module = "transformer.transformer_blocks.0.attn.to_q"
    total = pair[0].changes[module].delta() + pair[1].changes[module].delta()
    u, s, vh = torch.linalg.svd(total)
    assert made[module].rank == 3
    assert off(made[module].delta(), u[:, :3] * s[:3] @ vh[:3]) < 1e-5


def test_ties_elects_signs_and_averages_those_that_agree():
    one, two = torch.tensor([[4.0, -3.0, 0.1, 1.0]]), torch.tensor([[2.0, 5.0, 0.2, -9.0]])
    trimmed = combine._ties([one, two], density=0.75)
    assert torch.equal(trimmed, torch.tensor([[3.0, 5.0, 0.0, -9.0]]))


def test_dare_keeps_the_mean_and_the_density():
    delta = torch.ones(200, 200)
    made = combine._dare([delta], 0.25, 0, "m")
    assert abs(float((made != 0).float().mean()) - 0.25) < 0.01
    assert abs(float(made.mean()) - 1) < 0.05
    assert torch.equal(made, combine._dare([delta], 0.25, 0, "m"))


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_of_one_adapter_alone_nothing_is_lost_at_full_density(method, pair):
    made = combine.combine_adapters([(pair[0], 1.0)], method, density=1.0)
    for module, change in made.items():
        assert off(change.delta(), pair[0].changes[module].delta()) < 1e-5


def test_resize_reaches_the_energy_it_states(pair):
    made, kept = combine.resize_adapter(pair[0].changes, energy=0.9)
    for module, change in made.items():
        values = torch.linalg.svdvals(pair[0].changes[module].delta().double())
        needed = int((values.square().cumsum(0) / values.square().sum() < 0.9).sum()) + 1
        assert change.rank == needed
        assert kept[module] >= 0.9
        lost = off(change.delta(), pair[0].changes[module].delta()) ** 2
        assert abs(1 - kept[module] - lost) < 1e-5
    same, kept = combine.resize_adapter(pair[0].changes, rank=99)
    assert all(change.rank == 4 for change in same.values())
    assert min(kept.values()) > 1 - 1e-9


def test_the_random_projection_finds_the_same_subspace():
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(1500, 40, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(1200, 40, generator=generator)).Q
    delta = left * torch.logspace(0, -2, 40) @ right.T
    low = low_rank.nearest_lora(delta, 8)
    exact = left[:, :8] * torch.logspace(0, -2, 40)[:8] @ right[:, :8].T
    assert off(low.delta(), exact) < 1e-3
    assert torch.equal(low.up, low_rank.nearest_lora(delta, 8).up)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_merged_equals_base_plus_adapter(name, tmp_path):
    trained = predict(name, train(name, tmp_path / "a.safetensors"))
    count = merge.merge_into_base(
        tiny.tiny_folder(name),
        [(formats.read_adapter_file(tmp_path / "a.safetensors"), 1.0)],
        tmp_path / "merged",
    )
    assert count == len(formats.read_adapter_file(tmp_path / "a.safetensors").changes)
    family_pipe = type(tiny.build(name)).from_pretrained(str(tmp_path / "merged"))
    assert (predict(name, family_pipe) - trained).abs().max() <= 1e-5 * trained.abs().max()


def test_merge_into_shards_in_bfloat16(tmp_path):
    train("sd3", tmp_path / "a.safetensors")
    pipe = tiny.build("sd3")
    pipe.transformer.to(torch.bfloat16)
    pipe.transformer.save_pretrained(str(tmp_path / "base" / "transformer"), max_shard_size="60KB")
    shards = sorted((tmp_path / "base" / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    merge.merge_into_base(tmp_path / "base", [(adapter, 0.5)], tmp_path / "out")
    before, after = formats.BaseWeights(tmp_path / "base"), formats.BaseWeights(tmp_path / "out")
    for module, change in adapter.changes.items():
        expected = (before.read(module).float() + 0.5 * change.delta()).to(torch.bfloat16)
        assert torch.equal(after.read(module), expected)
    for shard in shards:
        other = storage.read_safetensors(tmp_path / "out" / "transformer" / shard.name)
        for key, value in storage.read_safetensors(shard).items():
            if f"transformer.{key.removesuffix('.weight')}" not in adapter.changes:
                assert torch.equal(other[key], value)


def test_merge_refuses_before_it_writes(tmp_path):
    train("sd35", tmp_path / "a.safetensors")
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"no module transformer\.transformer_blocks\.0\.attn2"):
        merge.merge_into_base(tiny.tiny_folder("sd3"), [(adapter, 1.0)], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        merge.merge_into_base(tiny.tiny_folder("sd35"), [(adapter, 1.0)], tmp_path / "full")
    assert not (tmp_path / "out").exists()


def test_extract_finds_what_was_merged(tmp_path):
    train("sd3", tmp_path / "a.safetensors")
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    base = tiny.tiny_folder("sd3")
    merge.merge_into_base(base, [(adapter, 1.0)], tmp_path / "tuned")
    changes, kept, family = extract.extract_adapter(base, tmp_path / "tuned", rank=4)
    assert family == "sd3"
    assert changes.keys() == adapter.changes.keys()
    for module, change in changes.items():
        assert off(change.delta(), adapter.changes[module].delta()) < 1e-5
        assert kept[module] > 1 - 1e-9
    less, kept, _ = extract.extract_adapter(base, tmp_path / "tuned", energy=0.8)
    for module, change in less.items():
        assert kept[module] >= 0.8
        assert kept[module] == pytest.approx(
            1 - off(change.delta(), adapter.changes[module].delta()) ** 2, abs=1e-5
        )
    with pytest.raises(ConfigError, match="do not differ"):
        extract.extract_adapter(base, base, rank=4)


def run(capsys, *words):
    code = main.main([str(word) for word in words])
    return code, capsys.readouterr()


def test_the_commands(tmp_path, capsys):
    train("sd3", tmp_path / "a.safetensors")
    code, told = run(capsys, "inspect", tmp_path / "a.safetensors", "--json")
    found = json.loads(told.out)
    assert (code, found["families"], found["ranks"], found["kinds"]) == (0, ["sd3"], {"4": 15}, {"lora": 15})
    assert found["scales"] == {"2.5": 15}
    assert found["loads_in"]["comfyui"] == "after `lorakit export --for comfyui`"
    assert run(capsys, "inspect", tmp_path / "a.safetensors")[0] == 0
    assert run(capsys, "check", tmp_path / "a.safetensors", "--for", "comfyui")[0] == 3
    code, told = run(
        capsys, "convert", tmp_path / "a.safetensors", tmp_path / "n.safetensors", "--to", "native"
    )
    assert code == 0, told.err
    assert all(
        key.startswith("diffusion_model.") for key in storage.read_safetensors(tmp_path / "n.safetensors")
    )
    assert run(capsys, "check", tmp_path / "n.safetensors", "--for", "a1111")[0] == 0
    code, told = run(
        capsys, "convert", tmp_path / "n.safetensors", tmp_path / "d.safetensors", "--to", "diffusers"
    )
    assert run(capsys, "check", tmp_path / "d.safetensors", "--for", "comfyui")[0] == 0
    out = tmp_path / "c.safetensors"
    code, told = run(
        capsys,
        "combine",
        f"{tmp_path / 'a.safetensors'}:0.5",
        f"{tmp_path / 'd.safetensors'}:0.5",
        "--out",
        out,
    )
    assert code == 0, told.err
    mine, both = formats.read_adapter_file(tmp_path / "a.safetensors"), formats.read_adapter_file(out)
    assert all(off(both.changes[m].delta(), change.delta()) < 1e-6 for m, change in mine.changes.items())
    code, told = run(capsys, "resize", out, "--rank", 4, "--out", tmp_path / "r.safetensors", "--json")
    assert (code, json.loads(told.out)["ranks"]) == (0, [4, 4])
    base = tiny.tiny_folder("sd3")
    code, told = run(capsys, "merge", base, tmp_path / "r.safetensors", "--out", tmp_path / "m")
    assert code == 0, told.err
    code, told = run(
        capsys, "extract", base, tmp_path / "m", "--rank", 4, "--out", tmp_path / "x.safetensors"
    )
    assert code == 0, told.err
    back = formats.read_adapter_file(tmp_path / "x.safetensors")
    assert all(off(back.changes[m].delta(), change.delta()) < 1e-4 for m, change in mine.changes.items())


def test_commands_on_a_file_with_nan(tmp_path, capsys):
    """Looking at it works and tells; all end with the code for numbers and name the tensor."""
    path = tmp_path / "a.safetensors"
    train("sd3", path)
    tensors, metadata = storage.read_safetensors(path), storage.read_safetensors_metadata(path)
    key = "transformer.transformer_blocks.1.attn.to_k.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    storage.write_safetensors(path, tensors, metadata)
    code, told = run(capsys, "inspect", path, "--json")
    found = json.loads(told.out)
    assert (code, found["sound"], found["unsound"]) == (6, False, [key])
    assert found["norms"]["transformer.transformer_blocks.1"] is None
    assert found["norms"]["transformer.transformer_blocks.0"] > 0
    assert set(found["loads_in"].values()) == {"no: it holds NaN or infinity"}
    code, told = run(capsys, "inspect", path)
    assert code == 6
    assert "unsound: " in told.out
    assert key in told.err
    out = tmp_path / "o.safetensors"
    for words in (
        ("check", path, "--for", "comfyui"),
        ("convert", path, out, "--to", "kohya"),
        ("resize", path, "--rank", 2, "--out", out),
        ("combine", path, "--out", out),
        ("merge", tiny.tiny_folder("sd3"), path, "--out", tmp_path / "m"),
    ):
        code, told = run(capsys, *words)
        assert (code, key in told.err) == (6, True), words
    assert not out.exists()
    assert not (tmp_path / "m").exists()


def test_commands_refuse_what_would_lose_something(tmp_path, capsys):
    train("sd3", tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    for words in (
        ("resize", tmp_path / "a.safetensors", "--rank", 2, "--out", tmp_path / "a.safetensors"),
        ("convert", tmp_path / "a.safetensors", tmp_path / "a.safetensors", "--to", "native"),
        ("combine", tmp_path / "a.safetensors", "--out", tmp_path / "a.safetensors"),
        ("resize", tmp_path / "a.safetensors", "--out", tmp_path / "c.safetensors"),
        ("resize", tmp_path / "a.safetensors", "--energy", 2, "--out", tmp_path / "c.safetensors"),
        ("combine", tmp_path / "a.safetensors", "--out", tmp_path / "folder"),
        ("inspect", tmp_path / "missing.safetensors"),
    ):
        code, told = run(capsys, *words)
        assert code == 2, (words, told)
        assert told.err.startswith("error: ")
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_other_kinds_go_through_the_same_tools(kind, tmp_path):
    expected = train_kind("sd3", tmp_path / "a.safetensors", kind)
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    base = tiny.tiny_folder("sd3")
    merge.merge_into_base(base, [(adapter, 1.0)], tmp_path / "merged")
    before, after = formats.BaseWeights(base), formats.BaseWeights(tmp_path / "merged")
    for module, change in expected.items():
        assert off(after.read(module) - before.read(module), change) < 1e-5
    made, kept = combine.resize_adapter(adapter.changes, energy=0.99, weights=before)
    assert all(isinstance(change, LoraDelta) for change in made.values())
    assert min(kept.values()) >= 0.99
    assert inspect.inspect_adapter(tmp_path / "a.safetensors")["kinds"] == {kind: len(expected)}
