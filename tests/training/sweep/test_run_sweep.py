"""Sweeps: the bytes of single runs, also after a kill; members that fail; the comparison."""

import pytest

from lorakit import manifest
from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training.run_folder import RunFolder
from lorakit.training.sweep import grid
from lorakit.training.sweep.run_sweep import run_sweep
from tests import runs
from tests.long_tier import long

TRAIN = {"steps": 4, "batch_size": 1, "accumulate": 1, "save_every": 2, "precision": "fp32"}
FILES = ("adapter.safetensors", "checkpoints/step-00000004/optimizer.safetensors")


def build(folder, base, words, *, num_images=12, square=True, **changes):
    """The recipe file and the members of a sweep."""
    data = folder / "data"
    if not data.exists():
        runs.make_dataset(data, num_images)
        if square:  # one shape: what the layers compute together is tried once for each
            manifest.save_manifest(data, manifest.load_manifest(data)[::3])
    changes = {"train": TRAIN, "validate": {"fraction": 0.5, "every": 2}} | changes
    file = runs.make_recipe(folder / "recipe.json", base, data, folder / "out", **changes)
    return file, grid.build_members(recipes.load_recipe(file), grid.parse_axes(words), folder / "sweep")


def assert_equal_to_single_runs(file, members, folder):
    for member in members:
        alone = runs.train(file, *member.overrides, f"out={folder / 'alone' / member.name}")
        for name in FILES:
            assert (alone / name).read_bytes() == (member.recipe.out / name).read_bytes(), member.name


def test_a_killed_sweep_goes_on_to_the_bytes_of_single_runs_and_is_compared(tmp_path):
    file, members = build(tmp_path, "tiny-dit", ["adapter.rank=4,16", "optimizer.lr=1e-3"])
    with runs.killed_at(3):
        run_sweep(members, tmp_path / "sweep")
        raise runs._Killed
    assert not (members[0].recipe.out / "adapter.safetensors").exists()
    result = run_sweep(members, tmp_path / "sweep")
    assert sorted(result.finished) == ["rank16-lr1e-3", "rank4-lr1e-3"]
    assert_equal_to_single_runs(file, members[1:], tmp_path)
    comparison = storage.read_json(tmp_path / "sweep" / "comparison.json")
    assert {row["name"] for row in comparison["members"]} == set(result.finished)
    assert "has the lowest loss on 2 held-out images" in comparison["note"]
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "rank16-lr1e-3" in page
    assert "validation loss over step" in page


def test_a_member_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    _, members = build(tmp_path, "tiny-dit", ["optimizer.lr=1e-3,2e-3"], validate={"fraction": 0})
    from lorakit.training import train

    begin = train.begin_training

    def fail_once(trainer, changes):
        if trainer.recipe.optimizer.lr == 2e-3:
            raise ConfigError("out of luck")
        begin(trainer, changes)

    monkeypatch.setattr(train, "begin_training", fail_once)
    result = run_sweep(members, tmp_path / "sweep")
    assert result.finished == ["lr1e-3"]
    assert result.failed == {"lr2e-3": "out of luck"}
    assert RunFolder(members[1].recipe.out).record()["error"] == "out of luck"
    assert "cannot be ranked" in storage.read_json(tmp_path / "sweep" / "comparison.json")["note"]


def test_a_folder_of_other_files_is_no_place_for_a_sweep(tmp_path):
    _, members = build(tmp_path, "tiny-dit", ["adapter.rank=4,16"])
    storage.write_text(tmp_path / "sweep" / "notes.txt", "mine")
    with pytest.raises(ConfigError, match="not empty and is not a sweep"):
        run_sweep(members, tmp_path / "sweep")


@long
@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("tiny-unet", ["adapter.rank=4,16", "train.seed=0,1"]),
        ("tiny-unet", ["adapter.type=lora,dora,lokr", "optimizer.name=adamw,adamw8bit"]),
        ("tiny-dit", ["adapter.init=kaiming,pissa", "objective.timesteps=uniform,mode"]),
        ("tiny-dit", ["train.batch_size=1,2", "objective.noise_offset=0.0,0.1"]),
    ],
)
def test_every_member_has_the_bytes_of_a_single_run(base, words, tmp_path):
    file, members = build(tmp_path, base, words, num_images=6, square=False)
    run_sweep(members, tmp_path / "sweep")
    assert_equal_to_single_runs(file, members, tmp_path)
