"""Tools for finished adapters: their numbers against sums of dense matrices."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.formats import LoraDelta, low_rank
from lorakit.adapters.tools import combine, extract, inspect, merge
from lorakit.adapters.tools.weighted import WeightedAdapter
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from tests import tiny
from tests.adapters.formats.runs import predict, train, train_method


@pytest.fixture
def pair(tmp_path):
    """Two adapters of one base model, the second for some of its modules."""
    train("sd3", tmp_path / "one.safetensors")
    train("sd3", tmp_path / "two.safetensors", targets=["to_q", "to_k"], std=0.1)
    return [formats.read_adapter_file(tmp_path / name) for name in ("one.safetensors", "two.safetensors")]


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_concatenation_is_exact(pair):
    first, second = pair
    combined = combine.combine_adapters([WeightedAdapter(first, 0.7), WeightedAdapter(second, -0.4)])
    assert combined.family == "sd3"
    assert combined.deltas.keys() == first.deltas.keys()
    for module, delta in combined.deltas.items():
        total = 0.7 * first.deltas[module].dense()
        if module in second.deltas:
            total = total - 0.4 * second.deltas[module].dense()
            assert delta.rank == 8
        assert off(delta.dense(), total) < 1e-6


def test_adapters_of_two_families_are_not_combined(pair, tmp_path):
    train("sd15", tmp_path / "other.safetensors")
    other = formats.read_adapter_file(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="different families: sd15, sd3"):
        combine.combine_adapters([WeightedAdapter(pair[0]), WeightedAdapter(other)])


def test_svd_keeps_the_best_rank_of_the_sum(pair):
    weighted = [WeightedAdapter(pair[0]), WeightedAdapter(pair[1])]
    combined = combine.combine_adapters(weighted, "svd", max_rank=3)
    module = "transformer.transformer_blocks.0.attn.to_q"
    total = pair[0].deltas[module].dense() + pair[1].deltas[module].dense()
    u, s, vh = torch.linalg.svd(total)
    assert combined.deltas[module].rank == 3
    assert off(combined.deltas[module].dense(), u[:, :3] * s[:3] @ vh[:3]) < 1e-5


KEYS = (0, "dare", "m")


def elected_mean(stack: torch.Tensor) -> torch.Tensor:
    """The election and the disjoint mean of arXiv:2306.01708, one entry after the other."""
    merged = torch.zeros(stack.shape[1:])
    for index in np.ndindex(*stack.shape[1:]):
        values = [float(value) for value in stack[(slice(None), *index)]]
        sign = np.sign(sum(values))
        agreeing = [value for value in values if value and np.sign(value) == sign]
        merged[index] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


def trim(matrix: torch.Tensor, density: float) -> torch.Tensor:
    """The entries of the largest magnitudes, as many as the density says."""
    order = sorted(np.ndindex(*matrix.shape), key=lambda index: -abs(float(matrix[index])))
    trimmed = torch.zeros_like(matrix)
    for index in order[: int(density * matrix.numel())]:
        trimmed[index] = matrix[index]
    return trimmed


@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_ties_is_the_formula_of_its_paper(count, density):
    generator = torch.Generator().manual_seed(count)
    matrices = [torch.randn(6, 4, generator=generator) for _ in range(count)]
    expected = elected_mean(torch.stack([trim(matrix, density) for matrix in matrices]))
    merged = combine._merge_dense(matrices, "ties", density, KEYS)
    assert torch.allclose(merged, expected, atol=1e-6)


def test_opposite_adapters_cancel_in_ties():
    matrix = torch.tensor([[4.0, -3.0, 0.5]])
    assert not combine._merge_dense([matrix, -matrix], "ties", 1.0, KEYS).any()
    first, second = torch.tensor([[4.0, -3.0, 0.1, 1.0]]), torch.tensor([[2.0, 5.0, 0.2, -9.0]])
    merged = combine._merge_dense([first, second], "ties", 0.75, KEYS)
    assert torch.equal(merged, torch.tensor([[3.0, 5.0, 0.0, -9.0]]))


def test_dare_keeps_the_mean_and_the_density_and_no_global_random_state():
    matrix, state = torch.ones(200, 200), torch.get_rng_state()
    merged = combine._merge_dense([matrix], "dare", 0.25, KEYS)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(merged.unique().tolist()) == {
        0.0,
        4.0,
    }  # dropped, or divided by the density (arXiv:2311.03099)
    assert abs(float((merged != 0).float().mean()) - 0.25) < 0.01
    assert abs(float(merged.mean()) - 1) < 0.05
    assert torch.equal(merged, combine._merge_dense([matrix], "dare", 0.25, KEYS))
    assert not torch.equal(merged, combine._merge_dense([matrix], "dare", 0.25, (1, "dare", "m")))


def test_dare_adds_and_dare_ties_elects():
    first, second = torch.tensor([[1.0, -1.0]]).repeat(8, 8), torch.tensor([[2.0, 3.0]]).repeat(8, 8)
    kept = [combine._prune(matrix, "dare", 0.5, (*KEYS, n)) for n, matrix in enumerate((first, second))]
    assert torch.equal(combine._merge_dense([first, second], "dare", 0.5, KEYS), kept[0] + kept[1])
    elected = combine._merge_dense([first, second], "dare-ties", 0.5, KEYS)
    assert torch.allclose(elected, elected_mean(torch.stack(kept)))


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties"])
def test_one_adapter_at_full_density_is_not_changed(method, pair):
    combined = combine.combine_adapters([WeightedAdapter(pair[0])], method, density=1.0)
    for module, delta in combined.deltas.items():
        assert off(delta.dense(), pair[0].deltas[module].dense()) < 1e-5


def test_resize_retains_the_energy_that_it_reports(pair):
    resized = combine.resize_adapter(pair[0], energy=0.9)
    for module, delta in resized.adapter.deltas.items():
        values = torch.linalg.svdvals(pair[0].deltas[module].dense().double())
        needed = int((values.square().cumsum(0) / values.square().sum() < 0.9).sum()) + 1
        assert delta.rank == needed
        assert resized.retained_energy[module] >= 0.9
        lost = off(delta.dense(), pair[0].deltas[module].dense()) ** 2
        assert abs(1 - resized.retained_energy[module] - lost) < 1e-5
    same = combine.resize_adapter(pair[0], max_rank=99)
    assert all(delta.rank == 4 for delta in same.adapter.deltas.values())
    assert min(same.retained_energy.values()) > 1 - 1e-9


def test_the_randomized_svd_finds_the_same_subspace():
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(1500, 40, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(1200, 40, generator=generator)).Q
    difference = left * torch.logspace(0, -2, 40) @ right.T
    lora = low_rank.nearest_lora(difference, 8)
    exact = left[:, :8] * torch.logspace(0, -2, 40)[:8] @ right[:, :8].T
    assert off(lora.dense(), exact) < 1e-3
    assert torch.equal(lora.up, low_rank.nearest_lora(difference, 8).up)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_merged_equals_base_plus_adapter(name, tmp_path):
    trained = predict(name, train(name, tmp_path / "a.safetensors"))
    count = merge.merge_into_base(
        tiny.tiny_folder(name),
        [WeightedAdapter(formats.read_adapter_file(tmp_path / "a.safetensors"))],
        tmp_path / "merged",
    )
    assert count == len(formats.read_adapter_file(tmp_path / "a.safetensors").deltas)
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
    merge.merge_into_base(tmp_path / "base", [WeightedAdapter(adapter, 0.5)], tmp_path / "out")
    before, after = formats.BaseWeights(tmp_path / "base"), formats.BaseWeights(tmp_path / "out")
    for module, delta in adapter.deltas.items():
        expected = (before.read_weight(module).float() + 0.5 * delta.dense()).to(torch.bfloat16)
        assert torch.equal(after.read_weight(module), expected)
    for shard in shards:
        other = storage.read_safetensors(tmp_path / "out" / "transformer" / shard.name)
        for key, value in storage.read_safetensors(shard).items():
            if f"transformer.{key.removesuffix('.weight')}" not in adapter.deltas:
                assert torch.equal(other[key], value)


def test_merge_checks_the_modules_before_it_writes(tmp_path):
    train("sd35", tmp_path / "a.safetensors")
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"no module transformer\.transformer_blocks\.0\.attn2"):
        merge.merge_into_base(tiny.tiny_folder("sd3"), [WeightedAdapter(adapter, 1.0)], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        merge.merge_into_base(tiny.tiny_folder("sd35"), [WeightedAdapter(adapter, 1.0)], tmp_path / "full")
    assert not (tmp_path / "out").exists()


def test_extract_returns_the_merged_adapter(tmp_path):
    train("sd3", tmp_path / "a.safetensors")
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    base = tiny.tiny_folder("sd3")
    merge.merge_into_base(base, [WeightedAdapter(adapter, 1.0)], tmp_path / "tuned")
    extracted = extract.extract_adapter(base, tmp_path / "tuned", max_rank=4)
    assert extracted.adapter.family == "sd3"
    assert extracted.adapter.deltas.keys() == adapter.deltas.keys()
    for module, delta in extracted.adapter.deltas.items():
        assert off(delta.dense(), adapter.deltas[module].dense()) < 1e-5
        assert extracted.retained_energy[module] > 1 - 1e-9
    smaller = extract.extract_adapter(base, tmp_path / "tuned", energy=0.8)
    for module, delta in smaller.adapter.deltas.items():
        assert smaller.retained_energy[module] >= 0.8
        assert smaller.retained_energy[module] == pytest.approx(
            1 - off(delta.dense(), adapter.deltas[module].dense()) ** 2, abs=1e-5
        )
    with pytest.raises(ConfigError, match="do not differ"):
        extract.extract_adapter(base, base, max_rank=4)


def run(capsys, *words):
    code = main.main([str(word) for word in words])
    return code, capsys.readouterr()


def test_the_commands_work_together(tmp_path, capsys):
    train("sd3", tmp_path / "a.safetensors")
    code, output = run(capsys, "inspect", tmp_path / "a.safetensors", "--json")
    found = json.loads(output.out)
    assert (code, found["families"], found["ranks"], found["types"]) == (0, ["sd3"], {"4": 15}, {"lora": 15})
    assert found["scales"] == {"2.5": 15}
    assert found["consumers"]["comfyui"].endswith(
        "`lorakit export --for comfyui` writes a file that it loads"
    )
    assert run(capsys, "inspect", tmp_path / "a.safetensors")[0] == 0
    assert run(capsys, "check", tmp_path / "a.safetensors", "--for", "comfyui")[0] == 3
    code, output = run(
        capsys, "convert", tmp_path / "a.safetensors", tmp_path / "n.safetensors", "--to", "native"
    )
    assert code == 0, output.err
    assert all(
        key.startswith("diffusion_model.") for key in storage.read_safetensors(tmp_path / "n.safetensors")
    )
    assert run(capsys, "check", tmp_path / "n.safetensors", "--for", "a1111")[0] == 0
    code, output = run(
        capsys, "convert", tmp_path / "n.safetensors", tmp_path / "d.safetensors", "--to", "diffusers"
    )
    assert run(capsys, "check", tmp_path / "d.safetensors", "--for", "comfyui")[0] == 0
    out = tmp_path / "c.safetensors"
    code, output = run(
        capsys,
        "combine",
        f"{tmp_path / 'a.safetensors'}:0.5",
        f"{tmp_path / 'd.safetensors'}:0.5",
        "--out",
        out,
    )
    assert code == 0, output.err
    mine, both = formats.read_adapter_file(tmp_path / "a.safetensors"), formats.read_adapter_file(out)
    assert all(off(both.deltas[m].dense(), delta.dense()) < 1e-6 for m, delta in mine.deltas.items())
    code, output = run(capsys, "resize", out, "--max-rank", 4, "--out", tmp_path / "r.safetensors", "--json")
    assert (code, json.loads(output.out)["ranks"]) == (0, [4, 4])
    base = tiny.tiny_folder("sd3")
    code, output = run(capsys, "merge", base, tmp_path / "r.safetensors", "--out", tmp_path / "m")
    assert code == 0, output.err
    code, output = run(
        capsys, "extract", base, tmp_path / "m", "--max-rank", 4, "--out", tmp_path / "x.safetensors"
    )
    assert code == 0, output.err
    back = formats.read_adapter_file(tmp_path / "x.safetensors")
    assert all(off(back.deltas[m].dense(), delta.dense()) < 1e-4 for m, delta in mine.deltas.items())


def test_commands_on_a_file_with_nan(tmp_path, capsys):
    """`inspect` describes the file; all commands end with the exit code for numbers and name the tensor."""
    path = tmp_path / "a.safetensors"
    train("sd3", path)
    tensors, metadata = storage.read_safetensors(path), storage.read_safetensors_metadata(path)
    key = "transformer.transformer_blocks.1.attn.to_k.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    storage.write_safetensors(path, tensors, metadata)
    code, output = run(capsys, "inspect", path, "--json")
    found = json.loads(output.out)
    assert (code, found["finite"], found["nonfinite_tensors"]) == (6, False, [key])
    assert found["norms"]["transformer.transformer_blocks.1"] is None
    assert found["norms"]["transformer.transformer_blocks.0"] > 0
    assert set(found["consumers"].values()) == {"no: it contains NaN or infinity"}
    code, output = run(capsys, "inspect", path)
    assert code == 6
    assert re.search(rf"nonfinite_tensors +{re.escape(key)}", output.out)
    assert key in output.err
    out = tmp_path / "o.safetensors"
    for words in (
        ("check", path, "--for", "comfyui"),
        ("convert", path, out, "--to", "kohya"),
        ("resize", path, "--max-rank", 2, "--out", out),
        ("combine", path, "--out", out),
        ("merge", tiny.tiny_folder("sd3"), path, "--out", tmp_path / "m"),
    ):
        code, output = run(capsys, *words)
        assert (code, key in output.err) == (6, True), words
    assert not out.exists()
    assert not (tmp_path / "m").exists()


def test_commands_replace_no_input_and_refuse_bad_values(tmp_path, capsys):
    train("sd3", tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    for words in (
        ("resize", tmp_path / "a.safetensors", "--max-rank", 2, "--out", tmp_path / "a.safetensors"),
        ("convert", tmp_path / "a.safetensors", tmp_path / "a.safetensors", "--to", "native"),
        ("combine", tmp_path / "a.safetensors", "--out", tmp_path / "a.safetensors"),
        ("resize", tmp_path / "a.safetensors", "--out", tmp_path / "c.safetensors"),
        ("resize", tmp_path / "a.safetensors", "--energy", 2, "--out", tmp_path / "c.safetensors"),
        ("combine", tmp_path / "a.safetensors", "--out", tmp_path / "folder"),
        ("inspect", tmp_path / "missing.safetensors"),
    ):
        code, output = run(capsys, *words)
        assert code == 2, (words, output)
        assert output.err.startswith("error: ")
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("method", ["dora", "loha", "lokr", "oft"])
def test_the_tools_accept_every_method(method, tmp_path):
    expected = train_method("sd3", tmp_path / "a.safetensors", method)
    adapter = formats.read_adapter_file(tmp_path / "a.safetensors")
    base = tiny.tiny_folder("sd3")
    merge.merge_into_base(base, [WeightedAdapter(adapter)], tmp_path / "merged")
    before, after = formats.BaseWeights(base), formats.BaseWeights(tmp_path / "merged")
    for module, difference in expected.items():
        assert off(after.read_weight(module) - before.read_weight(module), difference) < 1e-5
    resized = combine.resize_adapter(adapter, energy=0.99, base_weights=before)
    assert all(isinstance(delta, LoraDelta) for delta in resized.adapter.deltas.values())
    assert min(resized.retained_energy.values()) >= 0.99
    assert inspect.inspect_adapter(adapter)["types"] == {method: len(expected)}
