"""How `lorakit train` starts: a finished run is answered at once, one process without a launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from lorakit import manifest
from lorakit.cli import main
from lorakit.config.recipe import load_recipe
from lorakit.core import launch, storage
from lorakit.data import fingerprints
from lorakit.models import base_model
from lorakit.training import run_changes, run_results, start
from lorakit.training.run_folder import RunFolder
from tests import runs


@pytest.fixture
def finished(tmp_path):
    """A recipe file whose run is recorded as finished."""
    data = runs.make_dataset(tmp_path / "data", 3)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-unet", data, tmp_path / "run")
    recipe = load_recipe(file)
    inputs = {
        "dataset": fingerprints.dataset_fingerprint(manifest.load_manifest(data)),
        "base": base_model.base_hash(base_model.resolve_base("tiny-unet")),
        "num_processes": 1,
    }
    run = RunFolder(tmp_path / "run")
    run_changes.start_or_resume(run, recipe, inputs)
    files = [
        storage.write_bytes(run.adapter_file, b"adapter"),
        storage.write_text(run.path / "exports/a", "a"),
    ]
    run_results.record_results(run, 12, files, ["comfyui"])
    return file


@pytest.mark.parametrize("command", ["train", "resume"])
def test_a_finished_run_is_answered_without_importing_torch(finished, command):
    target = finished if command == "train" else finished.parent / "run"
    code = (
        "import sys\nfrom lorakit.cli import main\n"
        f"code = main.main(['{command}', {str(target)!r}])\n"
        "assert not {'torch', 'accelerate', 'diffusers'} & set(sys.modules)\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "this run is finished: " in done.stderr
    assert "adapter.safetensors" in done.stderr


@pytest.mark.parametrize(
    "override",
    ["train.seed=1", "base=tiny-dit", "dataset={other}", "init_from={other}", "class_images={other}"],
)
def test_another_recipe_for_a_finished_run_is_left_to_the_training_process(finished, tmp_path, override):
    assert start.finished_adapter(load_recipe(finished)) == tmp_path / "run/adapter.safetensors"
    other = runs.make_dataset(tmp_path / "other", 4)
    assert start.finished_adapter(load_recipe(finished, [override.format(other=other)])) is None
    assert start.finished_adapter(load_recipe(finished), num_processes=2) is None


def test_a_finished_run_may_change_what_decides_no_weight(finished):
    assert start.finished_adapter(load_recipe(finished, ["tracker=wandb", "train.save_every=2"]))


def test_other_software_changes_nothing_in_a_finished_run(finished):
    recipe = load_recipe(finished)
    run = RunFolder(recipe.out)
    run.update_record(versions=run.record()["versions"] | {"torch": "0.1"})
    assert start.finished_adapter(recipe)


@pytest.mark.parametrize("name", ["adapter.safetensors", "exports/a"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_missing_or_damaged_result_is_left_to_the_training_process(finished, name, damage):
    recipe = load_recipe(finished)
    file = recipe.out / name
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content if damage == "flipped" else b"")
    assert start.finished_adapter(recipe) is None


def test_an_export_that_a_finished_run_has_not_made_is_left_to_the_training_process(finished):
    assert start.finished_adapter(load_recipe(finished, ["export=[comfyui]"]))
    assert start.finished_adapter(load_recipe(finished, ["export=[comfyui,diffusers]"])) is None


@pytest.mark.parametrize("content", ["", "{}", '{"status": "done"}', "[]"])
def test_a_damaged_record_is_left_to_the_training_process(finished, content):
    recipe = load_recipe(finished)
    (recipe.out / "run.json").write_text(content)
    assert start.finished_adapter(recipe) is None


def test_one_process_is_started_directly_and_several_by_a_launcher():
    assert launch.training_command("r.yaml", ["a=1"]) == [
        sys.executable, "-m", "lorakit.training", "r.yaml", "a=1",
    ]  # fmt: skip
    several = launch.training_command("r.yaml", ["a=1"], num_processes=2)
    assert several == [sys.executable, "-m", "lorakit.training.launcher", "2", "r.yaml", "a=1"]


def test_a_recipe_is_found_by_its_name_and_a_file_here_wins(tmp_path, monkeypatch):
    from lorakit.config.builtin_recipes import builtin_recipes_folder, find_recipe

    monkeypatch.chdir(tmp_path)
    assert find_recipe("sd15") == builtin_recipes_folder() / "sd15.yaml"
    (tmp_path / "sd15.yaml").write_text("base: mine\n")
    assert find_recipe("sd15").resolve() == tmp_path / "sd15.yaml"


def test_train_gives_the_recipe_and_the_overrides_to_the_child(tmp_path, monkeypatch):
    data = runs.make_dataset(tmp_path / "data", 3)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-unet", data, tmp_path / "run")
    started = []
    monkeypatch.setattr(launch, "run_training", lambda command, *_: started.append(command) or 5)
    assert main.main(["train", "train.steps=3", str(file), "--num-processes", "1", "train.seed=4"]) == 5
    assert started == [[sys.executable, "-m", "lorakit.training", str(file), "train.steps=3", "train.seed=4"]]


# ---- the child process -------------------------------------------------------------------------------------


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("import sys; sys.exit(3)", 3)])
def test_the_exit_code_of_the_child_is_returned(code, expected):
    assert launch.run_training(child(code)) == expected


def test_the_report_of_a_training_process_decides_and_is_printed_once(capfd):
    code = (
        "from lorakit.core import supervision, errors; import os, sys\n"
        "supervision.connect()\n"
        "first = errors.ProcessEndedError(where='step 3')\n"
        "for rank, error in (('0', first), ('1', errors.NumericError('x' * 999))):\n"
        "    os.environ['RANK'] = rank; supervision.report_end(error)\n"
        "print('printed by a library'); sys.exit(1)"
    )
    assert launch.run_training(child(code)) == 6
    printed = capfd.readouterr().err
    assert printed.strip().endswith(f"error: {'x' * 999}")
    assert "another process" not in printed
    assert "printed by a library" in printed


@pytest.mark.skipif(os.name == "nt", reason="no signals between processes")
def test_a_killed_child_has_the_exit_code_of_its_signal():
    assert launch.run_training(child("import os; os.kill(os.getpid(), 9)")) == 137


@pytest.mark.skipif(os.name == "nt", reason="no signals between processes")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_trainer_is_importing_ends_it(number, expected):
    code = (
        "import os, signal, sys, threading\nfrom lorakit.core import launch\n"
        f"threading.Timer(0.5, os.kill, (os.getpid(), {int(number)})).start()\n"
        "sys.exit(launch.run_training([sys.executable, '-c', 'import time; time.sleep(60)']))\n"
    )
    started = time.monotonic()
    done = subprocess.run(child(code), capture_output=True, text=True)
    assert done.returncode == expected
    assert time.monotonic() - started < 20
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no signals between processes")
def test_a_signal_is_forwarded_to_a_trainer_that_has_started():
    trainer = (
        "import signal, sys, time\nfrom lorakit.core import launch\n"
        "from lorakit.core import errors, supervision\nsupervision.start()\n"
        "stop = errors.Interrupted('x', signal_number=2)\n"
        "def end(number, frame):\n    sys.exit(supervision.report_end(stop))\n"
        "signal.signal(signal.SIGINT, end)\ntime.sleep(60)\n"
    )
    code = (
        "import os, signal, sys, threading\nfrom lorakit.core import launch\n"
        "threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        f"sys.exit(launch.run_training([sys.executable, '-c', {trainer!r}]))\n"
    )
    assert subprocess.run(child(code)).returncode == 130


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["adapter.rank=2"], 2),
        (["adapter.rank=2", "--accept-changes"], 2),
        (["optimizer.lr=5e-4"], 2),
        (["train.steps=3"], 2),
        (["optimizer.lr=5e-4", "--accept-changes"], 5),
        (["train.steps=99"], 5),
    ],
)
def test_other_settings_of_a_run_are_refused_before_a_process_is_started(
    finished, monkeypatch, capfd, words, code
):
    monkeypatch.setattr(launch, "run_training", lambda *arguments: 5)
    RunFolder(finished.parent / "run").update_record(checkpoint_step=12)
    assert main.main(["train", str(finished), *words]) == code
    assert ("->" in capfd.readouterr().err) == (code == 2)
