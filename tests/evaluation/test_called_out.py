"""Faulty adapters of the embedded base models raise alarms: without effect, three times too strong, or
trained with the captions of other images.

`python -m tests.benchmarks.planted_failures` trains and evaluates ten kinds of them at full size.
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
from tests.long_tier import long

pytestmark = long
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
def tripled(sound, prompts) -> EvaluationResult:
    return evaluate(sound, prompts, strengths=(1.0, 3.0))


def verdict_text(result: EvaluationResult) -> str:
    evaluation, selection = result.evaluation, result.selection
    headline = selection_headline(evaluation, selection)
    return " ".join([headline.text, *selection_notes(evaluation, selection)])


def test_three_times_the_strength_drifts_and_strength_one_is_selected(tripled):
    plain, triple = tripled.selection.candidates
    assert not plain.has_alarm
    assert [(alarm.name, alarm.level) for alarm in triple.alarms] == [("drift", "warning")]  # of 12 prompts
    assert tripled.selection.variant is plain.variant
    assert "step-120@3" in verdict_text(tripled)
    assert "drift" in tripled.report.read_text().lower()


def test_an_adapter_without_effect_raises_the_alarm(sound, tripled, prompts, tmp_path):
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
