"""Each line of the tables in examples/coming-from.md: a setting of another trainer, and its recipe key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorakit.config.recipe_import import import_recipe

PAGE = Path(__file__).parents[3] / "examples" / "coming-from.md"
LINE = re.compile(r"^\| `([\w.]+)=(.+)` \| `([\w.]+)=(.+)` \|$")
# title: a file name, and settings by which the trainer is recognized
TRAINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "kohya's sd-scripts and musubi-tuner": (
        "a.yaml", {"network_module": "networks.lora_flux", "output_name": "dog", "output_dir": "out"},
    ),
    "ai-toolkit": ("a.yaml", {"network.type": "lora"}),
    "OneTrainer": ("a.json", {"training_method": "LORA", "model_type": "FLUX_DEV_1"}),
    "SimpleTuner": (
        "a.json",
        {"model_family": "flux", "model_type": "lora", "model_flavour": "dev", "lora_type": "standard"},
    ),
    "diffusion-pipe": ("a.yaml", {"pipeline_stages": 1, "save_dtype": "bfloat16", "adapter.type": "lora"}),
    "Scripts of diffusers": ("a.sh", {"instance_data_dir": "photos", "validation_prompt": "a dog"}),
}  # fmt: skip


def lines() -> list[tuple[str, str, str, str, str]]:
    table, title = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif match := LINE.match(line):
            table.append((title, *match.groups()))
    return table


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def written(file: Path, title: str, settings: dict[str, Any]) -> Path:
    tree = nested(settings)
    if title == "ai-toolkit":
        tree = {"job": "extension", "config": {"name": "dog", "process": [{"type": "sd_trainer"} | tree]}}
    text = json.dumps(tree) if file.suffix == ".json" else yaml.safe_dump(tree)
    if file.suffix == ".sh":
        text = "accelerate launch train_lora.py " + " ".join(
            f"--{k}" if v is True else f"--{k}={v!r}" for k, v in settings.items()
        )
    file.write_text(text, encoding="utf-8")
    return file


def test_the_page_has_a_table_for_each_trainer():
    assert {line[0] for line in lines()} == TRAINERS.keys()
    assert len(lines()) >= 60


@pytest.mark.parametrize(("title", "setting", "value", "key", "expected"), lines())
def test_a_setting_becomes_its_recipe_key(tmp_path, title, setting, value, key, expected):
    name, marks = TRAINERS[title]
    value = yaml.safe_load(value)
    imported = import_recipe(written(tmp_path / name, title, marks | {setting: value}))
    node: Any = imported.tree
    for part in key.split("."):
        node = node[part]
    assert node == yaml.safe_load(expected)
