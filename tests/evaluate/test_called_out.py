"""Adapters of the embedded base that are not what they should be are called out by the report: trained too
long on few images, doing nothing, twice too strong, taught with the captions of other pictures.

`python -m tests.benchmarks.overfit` does the first at its full size: ten checkpoints, 48 prompts, four seeds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorakit import adapter, storage
from lorakit.evaluate.run import Request, Result, evaluate_run
from lorakit.evaluate.verdict import headline, remarks
from lorakit.trial import Options
from tests.evaluate import embedded

OPTIONS = Options(steps=6, guidance=4.0, batch=20, quiet=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    return embedded.prompt_file(path, embedded.prompts(12, 8))


def evaluate(run: Path, prompts: Path, **changes) -> Result:
    return evaluate_run(run, Request(prompts=prompts, options=OPTIONS, validate=False, **changes))


def settings(steps: int, save_every: int, batch: int) -> dict[str, object]:
    made = {"steps": steps, "batch_size": batch, "save_every": save_every, "keep": 100}
    return {"steps": steps, "save_every": save_every, "train": {**made, "precision": "fp32"}}


@pytest.fixture(scope="module")
def overfit(tmp_path_factory) -> Path:
    """Six pictures, shown 120 times each."""
    folder = tmp_path_factory.mktemp("overfit")
    data = embedded.dataset(folder / "data", 6)
    return embedded.train(folder, data, lr=3e-3, **settings(180, 60, 4))


@pytest.fixture(scope="module")
def overfitted(overfit, prompts) -> Result:
    return evaluate(overfit, prompts)


def said(result: Result) -> str:
    evaluation, pick = result.evaluation, result.pick
    return " ".join([headline(evaluation, pick)[0], *remarks(evaluation, pick)])


def test_trained_too_long_on_few_images_fidelity_rises_until_alarms_end_it(overfitted):
    first, *_, last = overfitted.pick.standings
    assert first.fidelity.mean < last.fidelity.mean
    assert last.alarms
    assert overfitted.pick.arm is first.arm
    assert "step 180" in said(overfitted)
    assert "Alarms" in overfitted.report.read_text()


def test_an_adapter_that_does_nothing(overfit, prompts, tmp_path):
    run = shutil.copytree(overfit, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    file = run / "adapter.safetensors"
    tensors, facts = storage.read_safetensors(file), adapter.read_metadata(file)
    none = {name: t * 0 if ".lora_B." in name else t for name, t in tensors.items()}
    storage.write_safetensors(file, none, adapter.pack_metadata(facts))
    result = evaluate(run, prompts)
    assert [a.kind for s in result.pick.standings for a in s.alarms] == ["nothing"]
    assert result.pick.arm is None
    assert "does nothing" in said(result).lower()
    assert "does nothing" in result.report.read_text().lower()


def test_an_adapter_at_double_strength(overfit, overfitted, prompts):
    """What is fine as it is drifts too far at twice its strength."""
    result = evaluate(overfit, prompts, checkpoints="60", strengths=(1.0, 2.0))
    plain, double = result.pick.standings
    assert not plain.alarms
    assert "drift" in [alarm.kind for alarm in double.alarms]
    assert result.pick.arm is plain.arm
    assert "× 2" in said(result)


def test_an_adapter_trained_on_shuffled_captions(prompts, tmp_path):
    data = embedded.dataset(tmp_path / "data", 12, shuffled=True)
    run = embedded.train(tmp_path, data, lr=6e-3, **settings(100, 100, 8))
    result = evaluate(run, prompts)
    assert "deaf" in [alarm.kind for s in result.pick.standings for alarm in s.alarms]
    assert result.pick.arm is None
    assert "captions mixed up" in said(result)
    assert "does not listen" in result.report.read_text().lower()
