"""Changes in a run between two sessions: none, more steps, other processes, accepted changes."""

from __future__ import annotations

import pytest

from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training import run_identity
from lorakit.training.run_changes import start_or_resume
from lorakit.training.run_folder import RunFolder

INPUTS = {"dataset": "d" * 64, "base": "b" * 64, "num_processes": 1}
TREE = {
    "base": "tiny-dit",
    "train": {"steps": 6, "batch_size": 2, "accumulate": 2},
    "optimizer": {"schedule": "constant"},
}


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "data").mkdir()
    return TREE | {"dataset": str(tmp_path / "data"), "out": str(tmp_path / "run")}


@pytest.fixture
def run(tree):
    """A run that has saved the checkpoint of step 4."""
    folder = RunFolder(recipes.parse_recipe(tree).out)
    start_or_resume(folder, recipes.parse_recipe(tree), INPUTS)
    folder.update_record(checkpoint_step=4)
    return folder


def changed(tree, **sections):
    return recipes.parse_recipe(
        {key: tree.get(key) for key in tree}
        | {
            key: (tree.get(key, {}) | value if isinstance(value, dict) else value)
            for key, value in sections.items()
        }
    )


def test_a_run_is_resumed_with_the_same_settings_and_inputs_only_and_names_any_difference(run, tree):
    recipe = recipes.parse_recipe(tree)
    assert start_or_resume(run, recipe, INPUTS) is None
    other_output = changed(tree, tracker="tensorboard", train={"save_every": 7, "keep_optimizer_states": 1})
    assert start_or_resume(run, other_output, INPUTS) is None
    with pytest.raises(ConfigError, match=r"dataset: d+ -> e+"):
        start_or_resume(run, recipe, INPUTS | {"dataset": "e" * 64})
    record = storage.read_json(run.path / "run.json")
    storage.write_json(run.path / "run.json", record | {"versions": record["versions"] | {"torch": "1.0"}})
    with pytest.raises(ConfigError, match=r"torch: 1\.0 -> ") as caught:
        start_or_resume(run, recipe, INPUTS)
    assert "--accept-changes" in str(caught.value)
    assert "--fresh" in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {"rank": 8}},
        {"adapter": {"type": "dora"}},
        {"adapter": {"targets": ["to_q"]}},
        {"adapter": {"alpha": 8}},
        {"optimizer": {"name": "adamw"}},
        {"slider": {"target_prompt": "a", "positive_prompt": "b", "negative_prompt": "c"}},
    ],
)
@pytest.mark.parametrize("accept_changes", [False, True])
def test_what_decides_the_tensors_of_a_checkpoint_cannot_change(run, tree, sections, accept_changes):
    before = storage.read_json(run.path / "run.json")
    with pytest.raises(ConfigError, match="cannot continue") as caught:
        start_or_resume(run, changed(tree, **sections), INPUTS, accept_changes=accept_changes)
    assert "init_from" in str(caught.value)
    assert storage.read_json(run.path / "run.json") == before


@pytest.mark.parametrize(
    ("sections", "inputs", "key"),
    [
        ({"optimizer": {"lr": 5e-4}}, {}, "optimizer.lr"),
        ({"train": {"seed": 4}}, {}, "train.seed"),
        ({"train": {"steps": 3}}, {}, "train.steps"),
        ({"train": {"batch_size": 3}}, {}, "train.batch_size"),
        ({"resolution": 512}, {}, "resolution"),
        ({}, {"dataset": "e" * 64}, "dataset"),
        ({}, {"base": "e" * 64}, "base"),
        ({}, {"num_processes": 3}, "num_processes"),
    ],
)
def test_an_accepted_change_is_recorded_with_its_step_and_not_before_the_checkpoint_is_loaded(
    run, tree, sections, inputs, key
):
    recipe, new = changed(tree, **sections), INPUTS | inputs
    with pytest.raises(ConfigError, match=key):
        start_or_resume(run, recipe, new)
    before = run.record()
    changes = start_or_resume(run, recipe, new, accept_changes=True)
    assert run.record() == before
    changes.record(run, 4)
    record = run.record()
    assert record["changes"][0]["step"] == 4
    assert [line.split(":")[0] for line in record["changes"][0]["differences"]] == [key]
    assert "can no longer be reproduced" in (run.path / "log.txt").read_text()
    assert recipes.load_recipe(run.path / "recipe.yaml").train == recipe.train
    assert start_or_resume(run, recipe, new) is None  # accepted once and for all
    old, current = run_identity.run_hash(before), run_identity.run_hash(record)
    assert run_identity.known_run_hashes(record) == {old, current}


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "num_processes"), [(1, 4, 1), (4, 1, 1), (1, 2, 2), (2, 1, 2), (1, 1, 4)]
)
def test_another_division_of_the_same_batch_is_the_same_run(run, tree, batch_size, accumulate, num_processes):
    recipe = changed(tree, train={"batch_size": batch_size, "accumulate": accumulate})
    inputs = INPUTS | {"num_processes": num_processes}
    run_hash = run_identity.run_hash(run.record())
    start_or_resume(run, recipe, inputs).record(run, 4)
    assert "the same samples" in (run.path / "log.txt").read_text()
    assert run_identity.known_run_hashes(run.record()) == {run_hash}


@pytest.mark.parametrize("steps", [7, 12, 6000])
@pytest.mark.parametrize("done", [True, False])
def test_more_steps_of_a_constant_schedule_continue_the_run(run, tree, steps, done):
    if done:
        run.update_record(status="done", step=6)
    recipe = changed(tree, train={"steps": steps})
    changes = start_or_resume(run, recipe, INPUTS)
    assert run.status == "running"
    changes.record(run, 6)
    record = run.record()
    assert "changes" not in record
    assert record["settings"] == recipes.training_settings(recipe)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_more_steps_of_a_decaying_schedule_need_a_stage_of_their_own(tree, schedule):
    tree = tree | {"optimizer": {"schedule": schedule}}
    run = RunFolder(recipes.parse_recipe(tree).out)
    start_or_resume(run, recipes.parse_recipe(tree), INPUTS)
    run.update_record(checkpoint_step=4)
    with pytest.raises(ConfigError, match=r"train\.steps: 6 -> 12") as caught:
        start_or_resume(run, changed(tree, train={"steps": 12}), INPUTS)
    assert f"lorakit train {run.path} --extend 12" in str(caught.value)
    for extended_at in ([3], [6, 9]):
        with pytest.raises(ConfigError, match=r"train\.extended_at"):
            start_or_resume(run, changed(tree, train={"steps": 12, "extended_at": extended_at}), INPUTS)
    recipe = changed(tree, train={"steps": 12, "extended_at": [6]})
    start_or_resume(run, recipe, INPUTS).record(run, 6)
    assert "changes" not in run.record()


@pytest.mark.parametrize(
    "sections", [{"adapter": {"rank": 8}}, {"optimizer": {"lr": 1e-2}}, {"train": {"steps": 3}}]
)
def test_a_first_try_that_saved_no_step_does_not_block_its_correction(tree, sections):
    recipe = recipes.parse_recipe(tree)
    run = RunFolder(recipe.out)
    start_or_resume(run, recipe, INPUTS)
    storage.append_jsonl(run.metrics_file, {"step": 0, "validation_loss": 1.0})
    storage.write_text(run.path / "samples/step-00000000/a.png", "x")
    correction = changed(tree, **sections)
    assert start_or_resume(run, correction, INPUTS) is None
    assert run.record()["settings"] == recipes.training_settings(correction)
    assert not run.metrics()
    assert not (run.path / "samples").exists()
    assert "had saved no step yet" in (run.path / "log.txt").read_text()


@pytest.mark.parametrize(
    "software",
    ["pillow/jpg", "pillow/webp", "pillow/zlib", "pillow/libtiff", "pillow", "tokenizers", "numpy"],
)
def test_another_version_of_a_decoder_or_tokenizer_is_other_software(run, tree, software):
    versions = run.record()["versions"]
    assert software in versions
    run.update_record(versions=versions | {software: "0.1"})
    with pytest.raises(ConfigError, match=f"{software}: 0.1 -> "):
        start_or_resume(run, recipes.parse_recipe(tree), INPUTS)
