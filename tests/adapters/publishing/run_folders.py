"""Folders of finished runs without a training: adapter, samples and evaluation by lorakit's own writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lorakit.adapters.files import METADATA_KEY, pack_metadata, parse_adapter_metadata
from lorakit.adapters.selection_record import SELECTION_FILE, SelectionRecord
from lorakit.config import recipe
from lorakit.core import checksums, storage
from lorakit.data.prompts import Prompt, Sample
from lorakit.sampling import saved_samples
from lorakit.training.run_folder import RunFolder
from tests import runs
from tests.sampling.test_diffusers_pipeline import write_adapter

PROMPTS = (
    Prompt("a", "a red circle", "a red circle", seeds=(0,)),
    Prompt("b", "a sks ring on a plate", "a ring on a plate", seeds=(0, 1)),
    Prompt("c", "a sks picture number 2", "a picture number 2", seeds=(0,)),  # a caption of the dataset
)
SCORES = [
    {
        "score": "CLIP-T",
        "prompts": "3 of the subject",
        "base": "54.2 [49.5, 57.2]",
        "adapter": "61.0 [59.5, 63.0]",
        "change": "+6.8 [+5.0, +8.1]",
        "meaning": "100 x cosine of an image and its text",
    }
]


def write_samples(folder: Path, seed: int) -> None:
    """Write noise as samples of all prompts, with their list."""
    rng = np.random.default_rng(seed)
    samples = [
        Sample(prompt, number, Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)))
        for prompt in PROMPTS
        for number in prompt.seeds
    ]
    saved_samples.save_samples(folder, samples)


def make_run(root: Path, *, evaluated: bool, verdict: str = "Use step 2 at strength 1.") -> Path:
    """Write a finished run of two steps on four images, beside its dataset `root/data`."""
    data, run = runs.make_dataset(root / "data", 4), root / "run"
    file = runs.make_recipe(
        root / "r.yaml", "tiny-dit", data, run, trigger="sks", class_noun="picture", export=["comfyui"]
    )
    loaded = recipe.load_recipe(file)
    folder = RunFolder(run)
    folder.write_recipe(loaded)
    versions = {"lorakit": "0.2.0", "torch": "2.15.0"}
    concepts = [{"folder": "data", "trigger": "sks", "images": 4, "held_out": 1}]
    record = {"settings": {}, "inputs": {}, "versions": versions, "status": "done"}
    storage.write_json(folder.record_file, record | {"num_images": 4, "concepts": concepts})
    adapter = write_adapter("tiny-dit", run)
    text = storage.read_safetensors_metadata(adapter)[METADATA_KEY]
    metadata = parse_adapter_metadata(text, str(adapter)) | {"step": 2, "trigger": "sks"}
    storage.write_safetensors(adapter, storage.read_safetensors(adapter), pack_metadata(metadata))
    write_samples(run / "samples/step-00000002", 1)
    if evaluated:
        write_samples(run / "eval/images/base", 2)
        write_samples(run / "eval/images/step-2", 3)
        selection = SelectionRecord(
            variant="step-2",
            step=2,
            strength=1.0,
            file="adapter.safetensors",
            sha256=checksums.sha256_file(adapter),
            recommended=True,
            reason="the best",
            verdict=verdict,
            last_step=2,
            prompts_sha256="0" * 64,
            num_prompts=3,
            alarms=[{"name": "drift", "title": "Drift", "level": "warning", "message": "as 1.png shows"}],
            scores=SCORES,
            images={"base": "eval/images/base", "adapter": "eval/images/step-2"},
        )
        storage.write_json(run / SELECTION_FILE, selection.to_json())
    return run
