"""The whole path, from images to an export: `python -m tests.reliability.without_posix FOLDER`.

`test_without_posix` runs it where what only POSIX has is hidden.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lorakit.cli.main import main
from lorakit.core import storage
from tests import runs

RECIPE = {
    "train": {"steps": 4, "batch_size": 1, "save_every": 2, "precision": "fp32"},
    "samples": {"every": 4, "num_inference_steps": 1, "guidance_scale": 1.0},
    "validate": {"fraction": 0.4, "every": 4},
    "trigger": "sks",
    "class_noun": "ring",
}


def play(folder: Path) -> None:
    """Prepare, train, be killed, resume in a child process, sample, evaluate and export."""
    data, run = folder / "photos", folder / "run"
    runs.make_dataset(data, 4)
    (data / "manifest.jsonl").unlink()
    for file in data.glob("*.png"):
        file.with_suffix(".txt").write_text(f"a sks ring, number {file.stem}", encoding="utf-8")
    call("data", "prepare", data, "--workers", 2)
    prompts = storage.write_jsonl(
        folder / "prompts.jsonl", [{"id": "a", "prompt": "a sks ring", "seeds": [0]}]
    )
    samples = RECIPE["samples"] | {"prompts": str(prompts)}
    recipe = runs.make_recipe(folder / "r.yaml", "tiny-dit", data, run, **{**RECIPE, "samples": samples})
    with runs.killed_at(3):
        runs.train(recipe)
    call("resume", run)
    assert "resuming from step 2" in (run / "log.txt").read_text(encoding="utf-8")
    call("sample", "tiny-dit", "--adapter", run, "--prompts", prompts, "--out", folder / "samples",
         "--num-inference-steps", 1)  # fmt: skip
    call("eval", "run", run, "--checkpoints", "last", "--image-encoder", "none")
    call("export", run, "--for", "comfyui")


def call(*words: object) -> None:
    """Run a command; it must succeed."""
    code = main([str(word) for word in words])
    assert code == 0, f"{words}: exit code {code}"


if __name__ == "__main__":
    play(Path(sys.argv[1]))
    print("the whole path passes")
