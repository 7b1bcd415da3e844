"""The adapter that a path names: a file, or the selected, last or any other checkpoint of a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit import adapters
from lorakit.adapters.selection_record import SELECTION_FILE, SelectionRecord
from lorakit.adapters.sources import (
    ADAPTER_FILE,
    CHECKPOINTS_FOLDER,
    RECIPE_FILE,
    checkpoint_files,
    find_adapter,
    parse_adapter_source,
)
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.training import run_records


def write_adapter(file: Path, step: int) -> Path:
    metadata = adapters.pack_metadata({"type": "lora", "rank": 1, "alpha": 1, "family": "sd15", "step": step})
    return storage.write_safetensors(
        file, {"unet.x.lora_A.weight": torch.full((1, 2), float(step))}, metadata
    )


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints of steps 200, 400 and 600, whose last one is the finished adapter."""
    folder = tmp_path / "my run"
    storage.write_text(folder / RECIPE_FILE, "base: x\n")
    for step in (200, 400, 600):
        write_adapter(folder / CHECKPOINTS_FOLDER / f"step-{step:08d}" / ADAPTER_FILE, step)
    write_adapter(folder / ADAPTER_FILE, 600)
    return folder


def write_selection(run: Path, step: int | None, strength: float = 1.0, **changes: Any) -> SelectionRecord:
    file = checkpoint_files(run)[step].relative_to(run).as_posix() if step else None
    values: dict[str, Any] = {
        "variant": f"step-{step}" if step else None,
        "step": step,
        "strength": strength if step else None,
        "file": file,
        "sha256": checksums.sha256_file(run / file) if file else None,
        "recommended": True,
        "reason": "the best",
        "verdict": "Use it.",
        "last_step": 600,
        "prompts_sha256": "0",
        "num_prompts": 24,
    }
    record = SelectionRecord(**(values | changes))
    storage.write_json(run / SELECTION_FILE, record.to_json())
    return record


def test_the_names_in_a_runs_folder_are_those_of_the_training():
    assert ADAPTER_FILE == run_records.ADAPTER_FILE
    assert CHECKPOINTS_FOLDER == run_records.CHECKPOINTS_FOLDER
    assert RECIPE_FILE == run_records.RECIPE_FILE


def test_a_run_without_an_evaluation_is_its_last_checkpoint_and_says_so(run):
    source = find_adapter(run)
    assert (source.path, source.step, source.strength) == (run / ADAPTER_FILE, 600, 1.0)
    assert source.reason == "the last step 600: the run has no evaluation"
    assert source.line.startswith(f"{run}: the last step 600")
    (run / ADAPTER_FILE).unlink()  # it was interrupted
    assert find_adapter(run).path == run / CHECKPOINTS_FOLDER / "step-00000600" / ADAPTER_FILE


@pytest.mark.parametrize(("step", "strength"), [(200, 1.0), (400, 0.7), (600, 0.5)])
def test_a_run_is_its_selected_checkpoint_at_its_strength(run, step, strength):
    write_selection(run, step, strength)
    source = find_adapter(run)
    assert (source.step, source.strength, source.is_selected) == (step, strength, True)
    assert source.path == checkpoint_files(run)[step]
    assert f"step {step}, selected by the evaluation of 20" in source.reason
    assert (f"at strength {strength:g}" in source.line) == (strength != 1)
    assert parse_adapter_source(f"{run}:0.3").strength == 0.3
    assert parse_adapter_source(f"{run}:0.3").step == step


def test_the_best_checkpoint_of_an_evaluation_without_recommendation_is_used_with_its_alarms(run):
    write_selection(run, 400, recommended=False, alarms=[{"name": "drift", "title": "Drift"}])
    source = find_adapter(run)
    assert source.step == 400
    assert "which recommends none: Drift" in source.reason


def test_an_evaluation_that_selected_nothing_gives_its_reason(run):
    write_selection(run, None, reason="no prompt is about the subject", recommended=False)
    source = find_adapter(run)
    assert source.step == 600
    assert not source.is_selected
    assert "selected none: no prompt is about the subject" in source.reason


def make_longer(run: Path) -> None:
    write_adapter(run / CHECKPOINTS_FOLDER / "step-00000900" / ADAPTER_FILE, 900)


def remove_checkpoint(run: Path) -> None:
    shutil.rmtree(run / CHECKPOINTS_FOLDER / "step-00000400")


def change_checkpoint(run: Path) -> None:
    write_adapter(run / CHECKPOINTS_FOLDER / "step-00000400" / ADAPTER_FILE, 401)


def damage_record(run: Path) -> None:
    (run / SELECTION_FILE).write_text('{"format_version": 1, "variant": 3')


@pytest.mark.parametrize(
    ("change", "reason", "last"),
    [
        (make_longer, "trained on to step 900 since", 900),
        (remove_checkpoint, "the checkpoint of step 400 is gone", 600),
        (change_checkpoint, "the adapter of step 400 was changed since", 600),
        (damage_record, "cannot be read", 600),
    ],
)
def test_an_outdated_selection_is_named_and_not_used(run, change, reason, last):
    write_selection(run, 400, 0.7)
    change(run)
    source = find_adapter(run)
    assert (source.step, source.strength, source.is_selected) == (last, 1.0, False)
    assert reason in source.reason
    assert "evaluate again: lorakit eval run " in source.reason


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "checkpoints/../../x"])
def test_a_record_cannot_name_a_file_outside_the_run(run, file):
    write_selection(run, 400, file=file)
    assert not find_adapter(run).is_selected


@pytest.mark.parametrize(
    ("ending", "step", "strength"),
    [
        ("@200", 200, 1.0),
        ("@last", 600, 1.0),
        ("@400:0.8", 400, 0.8),
        (":2", 200, 2.0),
        ("@600:1e-1", 600, 0.1),
    ],
)
def test_a_checkpoint_is_chosen_by_its_step(run, ending, step, strength):
    write_selection(run, 200, 0.5)
    source = parse_adapter_source(f"{run}{ending}")
    assert (source.step, source.strength) == (step, strength)
    assert source.is_selected == ("@" not in ending)
    assert ("as requested" in source.reason) == ("@" in ending)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{run}@500", "no checkpoint of step 500"),
        ("{run}@500:0.5", "no checkpoint of step 500"),
        ("{run}:strong", "'strong' is not a strength"),
        ("{run}:nan", "is not a strength"),
        ("{run}/nowhere", "there is no such adapter"),
        ("{run}/adapter.safetensors@200", "only a run has checkpoints"),
        (r"C:\runs\dog", "there is no such adapter"),
        ("C:/runs/dog", "there is no such adapter"),
        (r"C:\runs\dog@400:0.8", "only a run has checkpoints"),
        (r"C:\runs\dog.safetensors:0.8", "there is no such adapter"),
    ],
)
def test_a_wrong_name_is_an_error_that_says_what_is_wrong(run, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_adapter_source(text.replace("{run}", str(run)))
    if "step 500" in message:
        assert "last, or one of 200, 400, 600" in str(caught.value)
    if text.startswith("C:"):
        assert "is not a strength" not in str(caught.value)


@pytest.mark.parametrize("name", ["a@400", "a@last", "a:0.5", "b@x:1"])
def test_a_file_that_exists_is_a_file_whatever_its_name(tmp_path, name):
    file = write_adapter(tmp_path / name, 5)
    for text in (str(file), f"{file}:0.5"):
        source = parse_adapter_source(text)
        assert (source.path, source.run, source.line) == (file, None, None)


def test_exports_of_a_checkpoint_that_is_not_the_last_have_a_folder_of_their_own(run):
    write_selection(run, 400, 0.7)
    assert find_adapter(run).export_folder() == run / "exports/step-00000400"
    assert find_adapter(f"{run}@last").export_folder() == run / "exports"
    assert find_adapter(run / ADAPTER_FILE).export_folder() == run / "exports"
