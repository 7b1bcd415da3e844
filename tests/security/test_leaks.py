"""Files to publish contain nothing private: no path, user name, caption or secret."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorakit import manifest
from lorakit.adapters import formats
from lorakit.core import storage
from lorakit.models import base_model
from tests import runs

CANARY = "canary7f3a"
SECRETS = ("USER", "LOGNAME", "HOSTNAME", "HOME", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY")


def marked_data(folder: Path) -> Path:
    """Make images whose folder, names and captions contain the canary."""
    runs.make_dataset(folder, 3)
    records = []
    for record in manifest.load_manifest(folder):
        name = f"{CANARY}-{record.file}"
        (folder / record.file).rename(folder / name)
        caption = manifest.Caption(f"a sks portrait of {CANARY}", "file")
        records.append(replace(record, file=name, captions=(caption,)))
    manifest.save_manifest(folder, records)
    return folder


@pytest.fixture(scope="module", params=["tiny-unet", "tiny-dit"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run with the canary in everything that a user enters."""
    folder = tmp_path_factory.mktemp("leaks") / f"home-{CANARY}"
    base = Path(shutil.copytree(base_model.EMBEDDED_FOLDER / request.param, folder / f"base-{CANARY}"))
    prompts = storage.write_jsonl(folder / "p.jsonl", [{"id": CANARY, "prompt": CANARY, "seeds": [0]}])
    file = runs.make_recipe(
        folder / f"recipe-{CANARY}.yaml",
        base,
        marked_data(folder / f"photos-{CANARY}"),
        folder / f"run-{CANARY}",
        samples={"prompts": str(prompts), "every": 2, "num_inference_steps": 1},
        class_noun=CANARY,
        trigger="sks",
        optimizer={"lr": 1e-2},
        train={"steps": 4, "batch_size": 2, "save_every": 2, "precision": "fp32"},
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRETS:
            patch.setenv(name, f"{CANARY}-{name}")
        yield runs.train(file)


def leaks(file: Path) -> list[str]:
    """Find the canary in a file, in any encoding that a reader would try."""
    data = file.read_bytes().lower()
    spellings = {encoding: CANARY.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")}
    spellings["reversed"] = CANARY[::-1].encode()
    return [f"{file.name} ({encoding})" for encoding, text in spellings.items() if text in data]


def test_nothing_private_is_in_any_exported_byte(run, tmp_path):
    adapter = run / "adapter.safetensors"
    for consumer in (*formats.CONSUMERS, "all"):
        try:
            exports = formats.export_adapter(adapter, consumer, tmp_path / consumer, base=None)
        except formats.consumers.ConfigError:
            continue  # it reads no adapters of this family
        assert [leak for exported in exports for leak in leaks(exported.path)] == []
    assert list(tmp_path.rglob("*.safetensors"))


def test_nothing_private_is_in_the_adapter_and_the_checkpoints(run):
    files = [run / "adapter.safetensors", *(p for p in (run / "checkpoints").rglob("*") if p.is_file())]
    assert len(files) > 4
    assert [leak for file in files for leak in leaks(file)] == []
    metadata = json.loads(storage.read_safetensors_metadata(run / "adapter.safetensors")["lorakit"])
    assert metadata["trigger"] == "sks"  # public: users type it


def test_the_search_for_private_text_finds_it(run):
    assert leaks(run / "recipe.yaml")
    assert leaks(run / "report.html")
