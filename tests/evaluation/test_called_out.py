"""Adapters of the embedded base that are not what they should be are called out by the report: trained too
long on few images, doing nothing, twice too strong, taught with the captions of other pictures.

`python -m tests.benchmarks.overfit` does the first at its full size: ten checkpoints, 48 prompts, four seeds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorakit import adapters
from lorakit.core import storage
from lorakit.evaluation.evaluate_run import EvaluationResult, RunEvaluationOptions, evaluate_run
from lorakit.evaluation.report.verdict import selection_headline, selection_remarks
from lorakit.sampling.pipeline import SamplingOptions
from tests.evaluation import embedded

OPTIONS = SamplingOptions(steps=6, guidance=4.0, batch=24, quiet=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    return embedded.prompt_file(path, embedded.prompts(12, 12))


def evaluate(run: Path, prompts: Path, **changes) -> EvaluationResult:
    return evaluate_run(
        run, RunEvaluationOptions(prompts=prompts, options=OPTIONS, validate=False, **changes)
    )


def train(folder: Path, data: Path, *, steps: int, save_every: int, batch: int, lr: float) -> Path:
    made = {"steps": steps, "batch_size": batch, "save_every": save_every, "keep": 100, "precision": "fp32"}
    return embedded.train(folder, data, steps=steps, save_every=save_every, lr=lr, train=made)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Stripes from six pictures beside six ordinary ones: an adapter with nothing to be said against."""
    folder = tmp_path_factory.mktemp("sound")
    data = embedded.dataset(folder / "data", 6, ordinary=6)
    return train(folder, data, steps=120, save_every=120, batch=8, lr=3e-3)


@pytest.fixture(scope="module")
def doubled(sound, prompts) -> EvaluationResult:
    return evaluate(sound, prompts, strengths=(1.0, 2.0))


def said(result: EvaluationResult) -> str:
    evaluation, pick = result.evaluation, result.pick
    return " ".join([selection_headline(evaluation, pick)[0], *selection_remarks(evaluation, pick)])


def test_at_double_strength_it_drifts_and_as_it_is_it_is_taken(doubled):
    plain, double = doubled.pick.standings
    assert not plain.alarms
    assert "drift" in [alarm.kind for alarm in double.alarms]
    assert doubled.pick.arm is plain.arm
    assert "Drifts: step 120 × 2" in said(doubled)
    assert "Drifts: step 120 × 2" in doubled.report.read_text()


def test_an_adapter_that_does_nothing(sound, doubled, prompts, tmp_path):
    run = shutil.copytree(sound, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    file = run / "adapter.safetensors"
    tensors, facts = storage.read_safetensors(file), adapters.read_adapter_metadata(file)
    none = {name: t * 0 if ".lora_B." in name else t for name, t in tensors.items()}
    storage.write_safetensors(file, none, adapters.pack_metadata(facts))
    result = evaluate(run, prompts)
    assert [a.kind for s in result.pick.standings for a in s.alarms] == ["nothing"]
    assert result.pick.arm is None
    assert "does nothing" in said(result).lower()
    assert "does nothing" in result.report.read_text().lower()


def test_an_adapter_trained_on_shuffled_captions(prompts, tmp_path):
    data = embedded.dataset(tmp_path / "data", 12, shuffled=True)
    run = train(tmp_path, data, steps=60, save_every=60, batch=8, lr=6e-3)
    result = evaluate(run, prompts)
    assert "deaf" in [alarm.kind for s in result.pick.standings for alarm in s.alarms]
    assert result.pick.arm is None
    assert "captions mixed up" in said(result)
    assert "does not listen" in result.report.read_text().lower()


def test_trained_too_long_on_few_images_fidelity_rises_until_alarms_end_it(tmp_path):
    """Six pictures, each shown two hundred times."""
    prompts = embedded.prompt_file(tmp_path / "p.jsonl", embedded.prompts(16, 8))
    run = train(tmp_path, embedded.dataset(tmp_path / "data", 6), steps=300, save_every=30, batch=4, lr=6e-3)
    result = evaluate(run, prompts, checkpoints="30,300")
    first, last = result.pick.standings
    assert first.fidelity.mean < last.fidelity.mean
    assert {"copy", "rote", "drift"} & {alarm.kind for alarm in last.alarms}
    assert result.pick.arm is first.arm
    assert "step 300" in said(result)
    assert "Alarms" in result.report.read_text()
