"""Damaged checkpoints and files of a run."""

from __future__ import annotations

import shutil

import pytest
import torch

from lorakit.core import storage
from lorakit.training import checkpoint
from tests.reliability import checks, corruption, instants, world
from tests.reliability.corruption import FILES, MODES
from tests.reliability.world import DIT, UNET

EVERY = [(DIT, file, mode) for file in FILES for mode in MODES]
EVERY += [(UNET, "optimizer.safetensors", "flip"), (UNET, "state.json", "cut")]


@pytest.mark.parametrize(("base", "file", "mode"), EVERY)
def test_66_a_damaged_newest_checkpoint_is_passed_over(recorded, base, file, mode):
    made, reference, seen = recorded(base, False)
    assert corruption.survives(made, reference, seen, file, mode) == []


@pytest.mark.parametrize("mode", ["no files", "an empty manifest", "no adapter in the manifest", "no folder"])
def test_66_a_hollow_newest_checkpoint_is_passed_over(recorded, mode):
    made, reference, seen = recorded(DIT, False)
    *_, newest = corruption.laid_out(made, seen, 15)
    manifest = newest / storage.CHECKSUMS_FILE
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
    assert checks.finish(made, reference) == []
    assert made.went_on_from() == 10


def test_66_a_file_too_many_does_no_harm(recorded):
    made, reference, seen = recorded(DIT, False)
    *_, newest = corruption.laid_out(made, seen, 15)
    (newest / "desktop.ini").write_text("[.ShellClassInfo]")
    assert checks.finish(made, reference) == []
    assert made.went_on_from() == 15
    assert (newest / "desktop.ini").exists()


@pytest.mark.parametrize("mode", MODES)
def test_67_all_damaged_is_a_refusal_and_never_a_fresh_start(recorded, mode):
    made, _, seen = recorded(DIT, False)
    folders = corruption.laid_out(made, seen, 15)
    for folder, file in zip(folders, FILES, strict=False):
        corruption.damage(folder / file, mode)
    before = instants.capture(made.run / "checkpoints"), (made.run / "metrics.jsonl").read_bytes()
    code, said = made.train()
    assert code == 3
    assert "every checkpoint of this run is damaged" in said
    assert "remedy:" in said
    after = instants.capture(made.run / "checkpoints"), (made.run / "metrics.jsonl").read_bytes()
    assert after == before


def test_69_the_state_of_another_optimizer_is_refused(recorded):
    made, _, seen = recorded(DIT, False)
    folder = corruption.laid_out(made, seen, 15)[-1]
    found = checkpoint.load_checkpoint(folder)
    shapes = {key.split("|")[0]: found.optimizer[key].shape for key in found.optimizer if "|state1" in key}
    moments = ("exp_avg", "exp_avg_sq")  # torch's names
    other = {f"{name}|{part}": torch.zeros(shape) for name, shape in shapes.items() for part in moments}
    files = {name: (folder / name).read_bytes() for name in ("adapter.safetensors", "state.json")}
    shutil.rmtree(folder)
    storage.commit_folder(folder, files | {"optimizer.safetensors": storage.safetensors_bytes(other)})
    code, said = made.train()
    assert code == 3, said
    assert "optimizer" in said


def test_a_torn_log_or_heartbeat_is_no_obstacle(recorded):
    made, reference, seen = recorded(DIT, False)
    for name in ("metrics.jsonl", "log.txt", "heartbeat.json", "recipe.yaml"):
        corruption.laid_out(made, seen, 15)
        file = made.run / name
        file.write_bytes(file.read_bytes()[:-7])
        assert checks.finish(made, reference) == [], name


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json"])
def test_damage_to_what_the_run_rests_on_is_a_refusal_that_names_it(recorded, name):
    made, _, seen = recorded(DIT, False)
    corruption.laid_out(made, seen, 15)
    file = made.run / name
    file.write_bytes(b'{"step": 1, "loss":\n' + file.read_bytes())
    before = instants.capture(made.run)
    code, said = made.train()
    assert code == 3
    assert name in said
    assert checkpoint.checkpoint_steps(made.run) == [10, 15]
    assert (made.run / name).read_bytes() == before[name]


def test_without_run_json_checkpoints_are_not_taken_for_nothing(recorded):
    made, _, seen = recorded(DIT, False)
    corruption.laid_out(made, seen, 15)
    (made.run / "run.json").unlink()
    code, said = made.train()
    assert code == 2
    assert "not a run" in said
    assert world.committed(made.run) == [10, 15]
