"""Runs with every adapter method: resumed to the same bytes, exported, sampled.

DoRA's way through the command line is in `test_pages.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit import adapters
from lorakit.adapters import formats
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from tests import runs, tiny

TRAIN = {"steps": 4, "batch_size": 1, "save_every": 2, "precision": "fp32"}
ONLY = ["attn2.to_q", "attn2.to_v"]
FAST_B = {"lr": 1e-2, "loraplus_lr_ratio": 16.0}
NF4 = {"memory": {"quantize": "nf4"}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # adapter, other keys
    "rslora": ({"type": "rslora", "conv_rank": 2, "blocks": ["up_blocks"]}, {"optimizer": FAST_B}),
    "dora": ({"type": "dora"}, NF4),
    "lokr": ({"type": "lokr", "factor": 4}, {}),
    "loha": ({"type": "loha", "rank_pattern": {"to_v": 2}}, {}),
    "oft": ({"type": "oft", "alpha": 16}, {}),
    "olora": ({"init": "olora"}, NF4),
    "pissa": ({"init": "pissa"}, {}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 2)


def written(case: str, data: Path, folder: Path, out: str) -> Path:
    own, others = CASES[case]
    tree = {"adapter": {"rank": 4, "alpha": 8, "targets": ONLY} | own, "train": TRAIN, "resolution": 64}
    tree |= {"optimizer": {"name": "adamw", "lr": 1e-2}} | others
    return runs.make_recipe(folder / f"{out}.json", tiny.tiny_folder("sd15"), data, folder / out, **tree)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("pissa", "dora")])
def test_a_resumed_run_ends_in_the_same_bytes_and_is_exported(case, data, tmp_path):
    whole = runs.train(written(case, data, tmp_path, "whole"))
    recipe = written(case, data, tmp_path, "killed")
    with runs.killed_at(3):
        runs.train(recipe)
    killed = runs.train(recipe)
    assert "resuming from step 2" in (killed / "log.txt").read_text()
    for name in ("adapter.safetensors", "checkpoints/step-00000004/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    read = formats.read_adapter_file(whole / "adapter.safetensors")
    assert read.deltas
    source, base = whole / "adapter.safetensors", tiny.tiny_folder("sd15")
    (exact,) = formats.export_adapter(source, "comfyui", tmp_path / "e", base=base, dtype="fp32")
    assert exact.max_relative_error <= 1e-5
    (rounded,) = formats.export_adapter(source, "comfyui", tmp_path / "half", base=base)
    assert rounded.dtype == ("fp32" if case == "olora" else "fp16")


def test_an_adapter_that_could_not_be_exported_is_not_trained(data, tmp_path):
    recipe = written("dora", data, tmp_path, "run")
    changes = [f"base={tiny.tiny_folder('sdxl')}", 'adapter.targets=["to_q","upsamplers.0.conv"]']
    with pytest.raises(ConfigError, match=r"a1111 would ignore 1 modules, first up_blocks\.0\.upsamplers"):
        runs.train(recipe, *changes, 'export=["comfyui","a1111"]')
    assert runs.steps_logged(tmp_path / "run") == 0


def test_dora_has_a_strength_and_another_run_starts_from_it(data, tmp_path):
    run = runs.train(written("dora", data, tmp_path, "run"))
    prompts = storage.write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "a ring", "seeds": [0]}])
    command = ["sample", str(tiny.tiny_folder("sd15")), "--prompts", str(prompts), "--quiet"]
    command += ["--size", "64x64", "--guidance-scale", "1", "--num-inference-steps", "1"]
    command += ["--provenance", "none"]  # the same pixels are the same file
    images = {}
    for strength in ("1", "0.5", "0"):
        out = tmp_path / strength
        assert main.main([*command, "--adapter", f"{run}:{strength}", "--out", str(out)]) == 0
        images[strength] = (out / "a-0.png").read_bytes()
    assert main.main([*command, "--out", str(tmp_path / "base")]) == 0
    assert images["0"] == (tmp_path / "base/a-0.png").read_bytes()
    assert len(set(images.values())) == 3
    second = written("dora", data, tmp_path, "second")
    with runs.killed_at(0):
        runs.train(second, f"init_from={run}")
    with pytest.raises(ConfigError, match=r"adapter\.type=dora"):
        runs.train(written("lokr", data, tmp_path, "third"), f"init_from={run}")


def test_a_plain_run_of_twice_the_rank_starts_from_a_finished_pissa(data, tmp_path):
    run = runs.train(written("pissa", data, tmp_path, "run"), "train.steps=2")
    metadata = adapters.read_adapter_metadata(run / "adapter.safetensors")
    assert (metadata["rank"], metadata["alpha"]) == (8, 16.0)
    recipe = written("pissa", data, tmp_path, "next")
    with pytest.raises(ConfigError, match="both set the initial weights"):
        runs.train(recipe, f"init_from={run}")
    plain = ["adapter.init=kaiming", "adapter.rank=8", "adapter.alpha=16", "train.steps=1"]
    after = runs.train(recipe, f"init_from={run}", *plain)
    one, two = (storage.read_safetensors(folder / "adapter.safetensors") for folder in (run, after))
    assert all(torch.allclose(one[key], two[key], atol=0.05) for key in one.keys() | two.keys())
