"""Faulty adapters of the embedded base models raise alarms: trained too long on few images, without effect,
twice too strong, or trained with the captions of other images.

`python -m tests.benchmarks.overfit` runs the first at full size: ten checkpoints, 48 prompts, four seeds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorakit import adapters
from lorakit.core import storage
from lorakit.evaluation.evaluate_run import evaluate_run
from lorakit.evaluation.report.verdict import selection_headline, selection_notes
from lorakit.evaluation.result import EvaluationResult
from lorakit.sampling.pipeline import SamplingOptions
from tests.evaluation import embedded

OPTIONS = SamplingOptions(num_inference_steps=6, guidance_scale=4.0, batch_size=24, quiet=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    return embedded.prompt_file(path, embedded.prompts(12, 12))


def evaluate(run: Path, prompts: Path, **options) -> EvaluationResult:
    return evaluate_run(run, prompts=prompts, sampling=OPTIONS, validation_loss=False, **options)


def train(folder: Path, data: Path, *, steps: int, save_every: int, batch: int, lr: float) -> Path:
    settings = {
        "steps": steps,
        "batch_size": batch,
        "save_every": save_every,
        "keep_optimizer_states": 100,
        "precision": "fp32",
    }
    return embedded.train(folder, data, steps=steps, save_every=save_every, lr=lr, train=settings)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Stripes from six images, with six ordinary ones: an adapter without faults."""
    folder = tmp_path_factory.mktemp("sound")
    data = embedded.dataset(folder / "data", 6, ordinary=6)
    return train(folder, data, steps=120, save_every=120, batch=8, lr=3e-3)


@pytest.fixture(scope="module")
def doubled(sound, prompts) -> EvaluationResult:
    return evaluate(sound, prompts, strengths=(1.0, 2.0))


def verdict_text(result: EvaluationResult) -> str:
    evaluation, selection = result.evaluation, result.selection
    headline = selection_headline(evaluation, selection)
    return " ".join([headline.text, *selection_notes(evaluation, selection)])


def test_double_strength_drifts_and_strength_one_is_selected(doubled):
    plain, double = doubled.selection.candidates
    assert not plain.has_alarm
    assert "drift" in [alarm.name for alarm in double.alarms]
    assert doubled.selection.variant is plain.variant
    assert "Drift: " in verdict_text(doubled)
    assert "step-120@2" in verdict_text(doubled)
    assert "drift" in doubled.report.read_text().lower()


def test_an_adapter_without_effect_raises_the_alarm(sound, doubled, prompts, tmp_path):
    run = shutil.copytree(sound, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    file = run / "adapter.safetensors"
    tensors, metadata = storage.read_safetensors(file), adapters.read_adapter_metadata(file)
    zeroed = {name: t * 0 if ".lora_B." in name else t for name, t in tensors.items()}
    storage.write_safetensors(file, zeroed, adapters.pack_metadata(metadata))
    result = evaluate(run, prompts)
    assert [alarm.name for c in result.selection.candidates for alarm in c.alarms] == ["no_effect"]
    assert result.selection.despite_alarms
    assert "the adapter does nothing" in verdict_text(result).lower()
    assert "the adapter does nothing" in result.report.read_text().lower()


def test_an_adapter_trained_with_shuffled_captions_ignores_prompts(prompts, tmp_path):
    data = embedded.dataset(tmp_path / "data", 12, shuffled=True)
    run = train(tmp_path, data, steps=60, save_every=60, batch=8, lr=6e-3)
    result = evaluate(run, prompts)
    assert "prompt_ignored" in [alarm.name for s in result.selection.candidates for alarm in s.alarms]
    assert result.selection.despite_alarms
    assert "each caption belongs to its image" in verdict_text(result)
    assert "prompt ignored" in result.report.read_text().lower()


def test_training_too_long_on_few_images_raises_fidelity_and_then_alarms(tmp_path):
    """Six images, each used two hundred times."""
    prompts = embedded.prompt_file(tmp_path / "p.jsonl", embedded.prompts(16, 8))
    run = train(tmp_path, embedded.dataset(tmp_path / "data", 6), steps=300, save_every=30, batch=4, lr=6e-3)
    result = evaluate(run, prompts, checkpoints="30,300")
    first, last = result.selection.candidates
    assert first.fidelity.mean < last.fidelity.mean
    assert {"copied_images", "memorization", "drift"} & {alarm.name for alarm in last.alarms}
    assert result.selection.variant is first.variant
    assert "step-300" in verdict_text(result)
    assert "Alarms" in result.report.read_text()
