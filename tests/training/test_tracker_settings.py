"""The names, project and settings that a tracker receives; and the check that it is installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from lorakit.config.monitoring import TrackerConfig
from lorakit.config.recipe import load_recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training import start
from lorakit.training.trackers import labels, libraries
from lorakit.training.trackers.feed import RunFeed
from lorakit.training.trackers.record import TrackerRecord, TrackerRecords
from tests import runs
from tests.training.tracker_runs import WrittenRun

ENVIRONMENTS = {
    "wandb": {
        "WANDB_PROJECT": "env", "WANDB_ENTITY": "team", "WANDB_RUN_GROUP": "g", "WANDB_NAME": "n",
        "WANDB_TAGS": "a,b",
    },
    "swanlab": {
        "SWANLAB_PROJ_NAME": "env", "SWANLAB_WORKSPACE": "team", "SWANLAB_GROUP": "g",
        "SWANLAB_EXP_NAME": "n", "SWANLAB_TAGS": "a, b",
    },
    "mlflow": {"MLFLOW_EXPERIMENT_NAME": "env", "MLFLOW_RUN_NAME": "n", "MLFLOW_TAGS": '{"a": "", "b": ""}'},
    "comet_ml": {
        "COMET_PROJECT_NAME": "env", "COMET_WORKSPACE": "team", "COMET_START_EXPERIMENT_NAME": "n",
        "COMET_START_EXPERIMENT_TAGS": "a,b",
    },
    "clearml": {"CLEARML_PROJECT": "env", "CLEARML_TASK": "n"},
}  # fmt: skip


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_of_a_tracker_keeps_its_meaning(name, tmp_path):
    environment = ENVIRONMENTS[name]
    resolved = labels.resolve_labels(TrackerConfig(name=name), tmp_path / "dog", environment)
    assert (resolved.project, resolved.run_name) == ("env", "n")
    assert resolved.entity == ("team" if name in ("wandb", "swanlab", "comet_ml") else None)
    assert resolved.group == ("g" if name in ("wandb", "swanlab") else None)
    assert resolved.tags == ([] if name == "clearml" else ["a", "b"])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_recipe_overrules_the_environment(name, tmp_path):
    environment = dict(ENVIRONMENTS[name])
    config = TrackerConfig(name=name, project="recipe", run_name="r", tags=["t"])
    resolved = labels.resolve_labels(config, tmp_path, environment)
    assert (resolved.project, resolved.run_name, resolved.tags) == ("recipe", "r", ["t"])
    labels.remove_overruled_variables(config, environment)
    assert "env" not in environment.values()
    assert ("team" in environment.values()) == (name in ("wandb", "swanlab", "comet_ml"))


@pytest.mark.parametrize("name", [*ENVIRONMENTS, "tensorboard", "trackio", "aim", "dvclive"])
def test_a_run_is_named_after_its_folder_by_default(name, tmp_path):
    resolved = labels.resolve_labels(TrackerConfig(name=name), tmp_path / "dog", {})
    assert resolved == labels.Labels(run_name="dog")


@pytest.mark.parametrize(
    ("address", "stored"),
    [
        ("https://user:secret@mlflow.test/x", "https://mlflow.test/x"),
        ("postgresql://token@host:5432/db", "postgresql://host:5432/db"),
        ("https://mlflow.test", "https://mlflow.test"),
    ],
)
def test_credentials_in_an_address_are_not_stored(address, stored, tmp_path):
    config = TrackerConfig(name="mlflow")
    assert labels.resolve_labels(config, tmp_path, {"MLFLOW_TRACKING_URI": address}).server == stored


@pytest.mark.parametrize(
    ("base", "sent"),
    [
        ("/home/alice/models/mine.safetensors", "mine.safetensors"),
        ("C:\\Users\\alice\\models\\mine", "mine"),
        ("~/models/mine/", "mine"),
        ("../alice/mine", "mine"),
        ("owner/name@0123", "owner/name@0123"),
    ],
)
def test_the_settings_that_are_sent_hold_no_path_of_this_machine(base, sent, tmp_path):
    run = WrittenRun(tmp_path / "dog", base)
    record = storage.read_json(run.path / "run.json")
    record["settings"] |= {"concepts": [{"folder": "/home/alice/photos", "trigger": "sks"}], "x": None}
    storage.write_json(run.path / "run.json", record)
    assert labels.sent_settings(run.path) == {
        "base": sent,
        "optimizer.lr": 1e-4,
        "train.steps": 12,
        "trigger": "sks",
        "concepts": '[{"folder": "photos", "trigger": "sks"}]',
    }


@pytest.mark.parametrize("name", [name for name in libraries.PACKAGES if name != "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_else(name, tmp_path, monkeypatch):
    def find(package: str) -> metadata.Distribution:
        if package in libraries.PACKAGES[name]:
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    installed = metadata.distribution
    monkeypatch.setattr(metadata, "distribution", find)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # which Python could import as a package
    data = tmp_path / "data"
    data.mkdir()
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", tracker=name)
    with pytest.raises(ConfigError, match=rf"the tracker {name} is not installed") as error:
        start.prepare_training(load_recipe(file), lambda *_: pytest.fail("it was prepared"))
    assert f"uv pip install {name}" in str(error.value)
    with pytest.raises(ConfigError, match="is not installed"):
        runs.train(file)
    assert not (tmp_path / "run").exists()


def test_the_feed_gives_each_step_once_and_only_complete_lines(tmp_path):
    run = WrittenRun(tmp_path / "dog")
    feed = RunFeed(run.path)
    assert feed.read(5) == []
    run.append(1, loss=None, lr=0.5)
    run.append(1, validation_loss=2.0)
    run.append(2, loss=1.0)
    with storage.open_append(run.path / "metrics.jsonl") as file:
        file.write(b'{"step": 3, "lo')
    assert [(s.step, s.metrics) for s in feed.read(1)] == [(1, {"lr": 0.5, "validation_loss": 2.0})]
    assert [(s.step, s.metrics) for s in feed.read(3)] == [(2, {"loss": 1.0})]
    with storage.open_append(run.path / "metrics.jsonl") as file:
        file.write(b'ss": 7}\nnot a row\n[]\n')
    run.sample(2)
    assert [(s.step, s.metrics, len(s.images)) for s in feed.read(3)] == [(2, {}, 2), (3, {"loss": 7}, 0)]
    assert feed.read(100) == []


@pytest.mark.parametrize(
    ("steps", "ranges"),
    [
        ([1, 2, 3, 4], [[1, 4]]),
        ([250, 500, 300, 301], [[250, 250], [300, 300], [301, 301], [500, 500]]),
        ([0, 1, 1, 5], [[0, 1], [5, 5]]),
    ],
)
def test_the_record_knows_each_step_that_was_sent(steps, ranges):
    record = TrackerRecord("wandb")
    for step in steps:
        record.add("loss", step)
    assert record.sent == {"loss": ranges}
    assert [step for step in range(600) if record.has("loss", step)] == sorted(set(steps))
    record.forget_after(max(steps) - 1)
    assert not record.has("loss", max(steps))


def test_an_id_that_the_user_chooses_is_a_run_of_its_own(tmp_path):
    records = TrackerRecords(tmp_path)
    first = records.find("wandb", labels.Labels(project="p"))
    first.id = "ours"
    chosen = records.find("wandb", labels.Labels(project="p", id="mine"))
    assert chosen.id == "mine"
    assert records.find("wandb", labels.Labels(project="p")) is first
    assert records.find("wandb", labels.Labels(project="p", id="mine")) is chosen


def test_nothing_of_the_machine_is_in_what_wandb_stores(tmp_path, monkeypatch):
    secret = "5ecret-canary"
    for variable in ("USER", "LOGNAME", "HOSTNAME", "WANDB_API_KEY"):
        monkeypatch.setenv(variable, f"{secret}{variable}".ljust(40, "0"))
    monkeypatch.setenv("HOME", str(tmp_path / f"{secret}HOME"))  # the library writes there
    run = WrittenRun(tmp_path / secret / "dog", f"/home/{secret}/base.safetensors")
    run.session(TrackerConfig(name="wandb"), 0, 4, done=True)
    files = [file for file in Path(run.path / "wandb").rglob("run-*.wandb")]
    assert files
    files += [file for file in Path(run.path / "wandb").glob("*/files/*") if file.is_file()]
    for file in files:
        assert secret.encode() not in file.read_bytes(), file
