"""Runs with memory settings: the same files, also when they are resumed with other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorakit.core import storage
from tests import runs, tiny

EVERYTHING = "memory={stream: 1, gradient_checkpointing: 0.5, offload_activations: true, %s}"
OTHER = "memory={stream: 0, gradient_checkpointing: 1, offload_activations: false}"


def numbers(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics without times."""
    rows = storage.read_jsonl(run / "metrics.jsonl")
    return [{key: row[key] for key in row if "loss" in key or key in ("step", "grad_norm")} for row in rows]


@pytest.mark.parametrize(
    ("base", "modulation"), [("sd35", "offload_modulation: true"), ("sd15", "offload_modulation: null")]
)
def test_memory_settings_change_no_byte_of_a_run_and_may_change_on_resume(base, modulation, tmp_path):
    """With samples and a validation loss on the way, by the streamed network."""
    file = runs.make_recipe(
        tmp_path / "r.yaml",
        tiny.tiny_folder(base),
        runs.make_dataset(tmp_path / "data"),
        tmp_path / "plain",
        train={"steps": 3, "batch_size": 2, "save_every": 1, "precision": "fp32"},
        samples={
            "prompts": str(runs.make_prompts(tmp_path / "p.jsonl")),
            "every": 2,
            "num_inference_steps": 2,
        },
        validate={"fraction": 0.34, "every": 2},
    )
    plain = runs.train(file, "memory={gradient_checkpointing: 0}")
    changed = f"out={tmp_path / 'changed'}"
    with runs.killed_at(2):
        runs.train(file, changed, EVERYTHING % modulation)
    run = runs.train(file, changed, OTHER)
    assert (plain / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()
    assert numbers(plain) == numbers(run)
    images = sorted(path.relative_to(plain) for path in (plain / "samples").rglob("*.png"))
    assert images
    assert all((plain / image).read_bytes() == (run / image).read_bytes() for image in images)
    assert "saves no memory here" in (run / "log.txt").read_text()
