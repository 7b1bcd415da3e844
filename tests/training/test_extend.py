"""Longer runs, runs that continue with changes, and results that are written again, on a tiny base."""

from __future__ import annotations

import json
import shutil

import pytest

from lorakit.cli import main
from lorakit.core import storage
from lorakit.training import checkpoint
from tests import runs
from tests.long_tier import long

TRAIN = {"steps": 6, "batch_size": 2, "save_every": 4, "precision": "fp32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extend")
    runs.make_dataset(folder / "data", 4)
    return folder


def make(folder, name, schedule="constant", **train):
    optimizer = {"lr": 1e-3, "schedule": schedule, "name": "adamw8bit"}
    return runs.make_recipe(
        folder / f"{name}.yaml",
        "tiny-dit",
        folder / "data",
        folder / name,
        optimizer=optimizer,
        train=TRAIN | train,
        export=["comfyui"],
    )


def extend(run, steps):
    """Return the recipe words of `lorakit train RUN --extend STEPS`, trained in this process."""
    from lorakit.training import start

    return runs.train(run / "recipe.yaml", *start.extension_overrides(run, steps))


def adapter(run):
    return (run / "adapter.safetensors").read_bytes()


@pytest.fixture(scope="module")
def six(folder):
    """A finished run of six steps."""
    return runs.train(make(folder, "six"))


def copy(run, target):
    """Return a copy of a run that trains into its new folder."""
    shutil.copytree(run, target)
    recipe = storage.read_json(run.parent / f"{run.name}.yaml")
    storage.write_json(target.parent / f"{target.name}.yaml", recipe | {"out": str(target)})
    text = (target / "recipe.yaml").read_text().replace(f"out: {run}", f"out: {target}")
    (target / "recipe.yaml").write_text(text)
    return target


def test_a_run_that_is_extended_has_the_bytes_of_one_that_was_as_long_from_the_start(folder, six):
    whole = runs.train(make(folder, "twelve", steps=12))
    run = extend(copy(six, folder / "extended"), 12)
    assert adapter(run) == adapter(whole)
    rows = [storage.read_jsonl(one / "metrics.jsonl") for one in (run, whole)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert "extended" in (run / "log.txt").read_text()
    record = storage.read_json(run / "run.json")
    assert (record["status"], record["step"]) == ("done", 12)
    extend(run, 12)  # the same command again: nothing to do
    assert adapter(run) == adapter(whole)
    edited = copy(six, folder / "edited")  # the same by editing the recipe
    runs.train(folder / "edited.yaml", "train.steps=12")
    assert adapter(edited) == adapter(whole)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_an_extension_of_a_decaying_schedule_continues_the_moments_with_a_schedule_of_its_own(
    folder, schedule
):
    run = runs.train(make(folder, schedule, schedule))
    moments = checkpoint.latest_valid_checkpoint(run).checkpoint.optimizer
    before = (run / "metrics.jsonl").read_bytes()
    extend(run, 12)
    whole = runs.train(make(folder, f"{schedule}-12", schedule, steps=12, extended_at=[6]))
    assert adapter(run) == adapter(whole)
    assert (run / "metrics.jsonl").read_bytes().startswith(before)
    rates = [row["lr"] for row in storage.read_jsonl(run / "metrics.jsonl")]
    assert rates[6:] == rates[:6]
    after = checkpoint.latest_valid_checkpoint(run).checkpoint.optimizer
    counters = [key for key in after if key.endswith("|step")]
    assert counters
    assert all(int(moments[key]) == 6 and int(after[key]) == 12 for key in counters)


@pytest.mark.parametrize("steps", [1, 5])
def test_fewer_steps_than_the_run_has_are_refused_with_the_number_to_give(six, capfd, steps):
    assert main.main(["train", str(six), "--extend", str(steps)]) == 2
    assert f"--extend {6 + steps}" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["six.yaml", "--extend", "9"], ["sd15", "--extend", "9"]])
def test_only_a_run_can_be_extended(folder, six, capfd, monkeypatch, words):
    monkeypatch.chdir(folder)
    assert main.main(["train", *words]) == 2
    assert "lorakit train RUN --extend 9" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["adapter.safetensors", "report.html", "exports"])
@pytest.mark.parametrize("damage", ["delete", "flip"])
def test_a_damaged_result_of_a_finished_run_is_written_again_by_the_same_command(folder, six, name, damage):
    run = copy(six, folder / f"damaged-{name}-{damage}")
    file = next((run / "exports").glob("*.safetensors")) if name == "exports" else run / name
    content = file.read_bytes()
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    runs.train(run.parent / f"{run.name}.yaml")
    if name != "report.html":  # it shows durations
        assert file.read_bytes() == content
    assert file.is_file()
    assert "is missing" in (run / "log.txt").read_text() or "is damaged" in (run / "log.txt").read_text()
    assert storage.read_json(run / "run.json")["status"] == "done"


def test_an_export_that_is_asked_for_later_is_made_by_the_same_command(folder, six):
    run = copy(six, folder / "later")
    runs.train(folder / "later.yaml", "export=[comfyui,diffusers]")
    assert len(list((run / "exports").glob("*.safetensors"))) >= 1
    assert {"comfyui", "diffusers"} <= set(storage.read_json(run / "run.json")["exported_for"])


def test_deleted_checkpoints_are_named_and_nothing_starts_over(folder, six):
    run = copy(six, folder / "deleted")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(Exception, match="step-00000006 is missing") as caught:
        extend(run, 12)
    assert "--fresh" in str(caught.value)
    assert adapter(run) == adapter(six)


def test_an_accepted_change_goes_on_from_the_last_checkpoint_and_cannot_be_reproduced(folder, six, capfd):
    from lorakit.config.recipe import load_recipe
    from lorakit.training.train import train_recipe

    run = copy(six, folder / "changed")
    recipe = load_recipe(folder / "changed.yaml", ["train.steps=8", "train.seed=3"])
    with pytest.raises(Exception, match=r"train\.seed: 0 -> 3"):
        train_recipe(recipe)
    train_recipe(recipe, accept_changes=True)
    record = storage.read_json(run / "run.json")
    assert record["changes"][0]["step"] == 6
    assert (record["status"], record["step"]) == ("done", 8)
    assert adapter(run) != adapter(six)
    assert main.main(["reproduce", str(run)]) == 2
    assert "changes from step 6 on" in capfd.readouterr().err


@long
def test_a_fresh_run_keeps_the_earlier_one_under_another_name(folder, six, capfd):
    run = copy(six, folder / "mistaken")
    words = [str(folder / "mistaken.yaml"), "adapter.rank=2", "train.steps=2"]
    assert main.main(["train", *words]) == 2
    assert main.main(["train", *words, "--fresh"]) == 0
    assert adapter(folder / "mistaken-old-1") == adapter(six)
    assert storage.read_json(run / "run.json")["settings"]["adapter.rank"] == 2
    assert main.main(["train", str(run), "--fresh"]) == 0  # the recipe lies in the renamed folder
    assert adapter(folder / "mistaken-old-2") == adapter(run)


def test_all_adapters_are_kept_and_the_removed_optimizer_states_are_named(folder):
    run = runs.train(make(folder, "kept", steps=5, save_every=1, keep_optimizer_states=2))
    assert checkpoint.checkpoint_steps(run) == [1, 2, 3, 4, 5]
    states = [
        step for step in range(1, 6) if (checkpoint.step_folder(run, step) / "optimizer.safetensors").exists()
    ]
    assert states == [4, 5]
    log = (run / "log.txt").read_text()
    assert all(f"optimizer state of step {step} removed" in log for step in (1, 2, 3))


def test_the_record_of_a_run_is_plain_json(six):
    record = json.loads((six / "run.json").read_text())
    assert record["checkpoint_step"] == 6
    assert "comfyui" in record["exported_for"]
    listing = json.loads((six / "files.json").read_text())
    assert listing.keys() >= {"adapter.safetensors", "report.html"}


@pytest.mark.parametrize("command", ["inspect", "export", "sample"])
def test_a_damaged_adapter_of_a_run_is_named_wherever_it_is_read(folder, six, capfd, command):
    run = copy(six, folder / f"read-{command}")
    file = run / "adapter.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    prompts = str(runs.make_prompts(folder / "p.jsonl"))
    out = ["--out", str(folder / f"out-{command}")]
    words = {
        "inspect": ["inspect", str(run)],
        "export": ["export", str(run), "--for", "comfyui"],
        "sample": ["sample", "tiny-dit", "--adapter", str(run), "--prompts", prompts],
    }[command]
    assert main.main([*words, *(out if command != "inspect" else [])]) == 0
    assert "is not the file that was written" in capfd.readouterr().err
