"""Damaged checkpoints and files of a run."""

from __future__ import annotations

import shutil

import pytest
import torch

from lorakit.core import checksums, safetensors_header, storage
from lorakit.training import checkpoint
from tests.reliability import checks, corruption, instants, tiny_training
from tests.reliability.corruption import FILES, MODES
from tests.reliability.tiny_training import DIT, UNET

EVERY = [(DIT, file, mode) for file in FILES for mode in MODES]
EVERY += [(UNET, "optimizer.safetensors", "flip"), (UNET, "state.json", "cut")]


@pytest.mark.parametrize(("base", "file", "mode"), EVERY)
def test_a_damaged_newest_checkpoint_is_skipped(recorded, base, file, mode):
    training, reference, seen = recorded(base, False)
    assert corruption.survives(training, reference, seen, file, mode) == []


@pytest.mark.parametrize("mode", ["no files", "an empty manifest", "no adapter in the manifest", "no folder"])
def test_an_incomplete_newest_checkpoint_is_skipped(recorded, mode):
    training, reference, seen = recorded(DIT, False)
    *_, newest = corruption.laid_out(training, seen, 15)
    manifest = newest / checksums.CHECKSUMS_FILE
    if mode == "no files":
        shutil.rmtree(newest)
        newest.mkdir()
    elif mode == "an empty manifest":
        manifest.write_text("{}")
    elif mode == "no adapter in the manifest":
        entries = storage.read_json(manifest)
        manifest.write_text(storage.dump_json({k: v for k, v in entries.items() if "adapter" not in k}))
    else:
        shutil.rmtree(newest)
    assert checks.finish(training, reference) == []
    assert training.resumed_from() == 10


def test_an_additional_file_does_no_harm(recorded):
    training, reference, seen = recorded(DIT, False)
    *_, newest = corruption.laid_out(training, seen, 15)
    (newest / "desktop.ini").write_text("[.ShellClassInfo]")
    assert checks.finish(training, reference) == []
    assert training.resumed_from() == 15
    assert (newest / "desktop.ini").exists()


@pytest.mark.parametrize("mode", MODES)
def test_a_run_with_only_damaged_checkpoints_is_refused_and_never_restarted(recorded, mode):
    training, _, seen = recorded(DIT, False)
    folders = corruption.laid_out(training, seen, 15)
    for folder, file in zip(folders, FILES, strict=False):
        corruption.damage(folder / file, mode)
    before = instants.capture(training.run / "checkpoints"), (training.run / "metrics.jsonl").read_bytes()
    code, output = training.train()
    assert code == 3
    assert "cannot be resumed from any checkpoint" in output
    assert "remedy:" in output
    after = instants.capture(training.run / "checkpoints"), (training.run / "metrics.jsonl").read_bytes()
    assert after == before


def test_the_state_of_another_optimizer_is_refused(recorded):
    training, _, seen = recorded(DIT, False)
    folder = corruption.laid_out(training, seen, 15)[-1]
    found = checkpoint.load_checkpoint(folder)
    shapes = {key.split("|")[0]: found.optimizer[key].shape for key in found.optimizer if "|state1" in key}
    moments = ("exp_avg", "exp_avg_sq")  # torch's names
    other = {f"{name}|{part}": torch.zeros(shape) for name, shape in shapes.items() for part in moments}
    files = {name: (folder / name).read_bytes() for name in ("adapter.safetensors", "state.json")}
    shutil.rmtree(folder)
    storage.commit_folder(
        folder, files | {"optimizer.safetensors": safetensors_header.safetensors_bytes(other)}
    )
    code, output = training.train()
    assert code == 3, output
    assert "optimizer" in output


def test_a_torn_log_or_heartbeat_is_no_obstacle(recorded):
    training, reference, seen = recorded(DIT, False)
    for name in ("metrics.jsonl", "log.txt", "heartbeat.json", "recipe.yaml"):
        corruption.laid_out(training, seen, 15)
        file = training.run / name
        file.write_bytes(file.read_bytes()[:-7])
        assert checks.finish(training, reference) == [], name


@pytest.mark.parametrize("damage", [b"{", b'{"step": 1, "loss":\n', b"[]\n"])
def test_a_damaged_record_is_a_refusal_that_names_it(recorded, damage):
    training, _, seen = recorded(DIT, False)
    corruption.laid_out(training, seen, 15)
    file = training.run / "run.json"
    file.write_bytes(damage + file.read_bytes())
    before = instants.capture(training.run)
    code, output = training.train()
    assert code == 3
    assert "run.json" in output
    assert tiny_training.committed(training.run) == [10, 15]
    assert file.read_bytes() == before["run.json"]


@pytest.mark.parametrize("line", [b'{"step": 1, "loss":', b"\xff", b"[]"])
def test_an_unreadable_line_of_the_metrics_stops_nothing(recorded, line):
    training, reference, seen = recorded(DIT, False)
    corruption.laid_out(training, seen, 15)
    file = training.run / "metrics.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes())
    assert checks.finish(training, reference, at_least=15) == []
    assert (training.run / "metrics-unreadable.txt").is_file()


def test_without_run_json_checkpoints_are_not_taken_for_nothing(recorded):
    training, _, seen = recorded(DIT, False)
    corruption.laid_out(training, seen, 15)
    (training.run / "run.json").unlink()
    code, output = training.train()
    assert code == 2
    assert "not a run" in output
    assert tiny_training.committed(training.run) == [10, 15]
