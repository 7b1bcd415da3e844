"""Runs on several concepts: order, repeats, loss weights, triggers, class images, record and report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lorakit import adapters, manifest
from lorakit.adapters.formats import export_adapter
from lorakit.cli import main
from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import batch_sampler
from lorakit.training import data_folders, reproduce, run_plan, setup, start
from lorakit.training.run_folder import RunFolder
from lorakit.training.step import TrainingStep
from tests import runs

NOUNS = {"sks": "dog", "ohwx": "cat"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folders of two subjects and of the class images of each."""
    for seed, (trigger, noun) in enumerate(NOUNS.items()):
        runs.make_dataset(tmp_path / trigger, 4, seed=seed, trigger=f"{trigger} {noun}")
        runs.make_dataset(tmp_path / noun, 2, seed=10 + seed, trigger=noun)
    return tmp_path


def concepts(data: Path, **changes: Any) -> list[dict[str, Any]]:
    """The list of both concepts; `changes` are lists of values, one for each."""
    return [
        {"folder": str(data / trigger), "trigger": trigger, "class_noun": noun}
        | {key: values[number] for key, values in changes.items()}
        for number, (trigger, noun) in enumerate(NOUNS.items())
    ]


def make_recipe(data: Path, dataset: Any, name: str = "run", /, **changes: Any) -> Path:
    settings = {"train": {"steps": 2, "batch_size": 2, "save_every": 1, "precision": "fp32"}}
    file = data / f"{name}.yaml"
    runs.make_recipe(file, "tiny-dit", data, data / name, **settings | {"dataset": dataset} | changes)
    return file


def session_of(file: Path) -> setup.Session:
    recipe = recipes.load_recipe(file)
    plan = run_plan.plan_training(recipe, lambda text: None)
    return setup.build_session(recipe, plan, torch.device("cpu"), main=True, wait_for_everyone=lambda: None)


@pytest.mark.parametrize("repeats", [(1, 1), (1, 3), (10, 2)])
def test_an_epoch_has_the_repeats_of_each_concept_in_the_recipes_order(repeats, data):
    session = session_of(make_recipe(data, concepts(data, repeats=repeats)))
    names = [item.name for item in session.train_set.items]
    assert names == [
        f"{trigger}/{n}.png"
        for trigger, number in zip(NOUNS, repeats, strict=True)
        for n in range(4)
        for _ in range(number)
    ]


def test_the_repeats_of_a_concept_multiply_those_of_the_manifest(data):
    import dataclasses

    records = manifest.load_manifest(data / "ohwx")
    records[1] = dataclasses.replace(records[1], repeats=5)
    manifest.save_manifest(data / "ohwx", records)
    session = session_of(make_recipe(data, concepts(data, repeats=[1, 2])))
    names = [item.name for item in session.train_set.items]
    assert [names.count(f"ohwx/{n}.png") for n in range(4)] == [2, 10, 2, 2]


def test_a_manifest_in_another_order_gives_the_same_order_of_images(data):
    before = [item.name for item in session_of(make_recipe(data, concepts(data))).train_set.items]
    file = data / "ohwx" / manifest.MANIFEST_FILE
    file.write_bytes(b"".join(reversed(file.read_bytes().splitlines(keepends=True))))
    assert [item.name for item in session_of(make_recipe(data, concepts(data))).train_set.items] == before


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (0.25, 2.0)])
def test_the_weight_of_a_concept_multiplies_the_loss_of_its_images(weights, data):
    session = session_of(make_recipe(data, concepts(data, weight=weights)))
    step = TrainingStep(session, Accelerator(cpu=True), lambda text: None)
    train_set = session.train_set
    samples = batch_sampler.step_samples(0, 8, train_set.caption_choices, 0)
    expected = 0.0
    for sample in samples:  # each alone
        plain = float(step.loss(train_set, [sample], "noise", step._uniforms([sample], "time")).detach())
        is_second = train_set.items[sample.image_index].folder.name == "ohwx"
        expected += weights[is_second] * plain / len(samples)
    assert float(step.compute_gradients(samples)) == pytest.approx(expected, rel=1e-5)


def test_a_list_of_one_concept_trains_the_same_bytes_as_its_folder(data):
    single = make_recipe(data, str(data / "sks"), "single", trigger="sks", class_noun="dog")
    listed = make_recipe(data, concepts(data)[:1], "listed")
    first, second = (adapters_of(runs.train(file)) for file in (single, listed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def adapters_of(run: Path) -> dict[str, torch.Tensor]:
    return storage.read_safetensors(run / "adapter.safetensors")


def test_a_run_on_two_concepts_records_and_exports_both(data):
    prompts = [
        {"id": "a", "prompt": "a sks dog", "seeds": [0]},
        {"id": "b", "prompt": "ohwx cat", "seeds": [0]},
    ]
    prompts += [{"id": "c", "prompt": "a boat", "seeds": [0], "kind": "Things"}]
    file = storage.write_jsonl(data / "p.jsonl", prompts)
    samples = {"prompts": str(file), "num_inference_steps": 1, "clip_model": "embedded"}
    run = runs.train(
        make_recipe(
            data, concepts(data, repeats=[1, 2], weight=[1, 2]), samples=samples, validate={"fraction": 0.25}
        )
    )
    record = storage.read_json(run / "run.json")
    assert [(row["folder"], row["trigger"], row["repeats"], row["weight"]) for row in record["concepts"]] == [
        ("sks", "sks", 1, 1.0),
        ("ohwx", "ohwx", 2, 2.0),
    ]
    assert [(row["images"], row["held_out"], row["samples_per_epoch"]) for row in record["concepts"]] == [
        (4, 1, 3),
        (4, 1, 6),
    ]
    assert [row["steps_per_epoch"] for row in record["concepts"]] == [1.5, 3.0]
    assert [(row["captions"], row["captions_with_trigger"]) for row in record["concepts"]] == [(3, 3)] * 2
    assert {"dataset.0.folder", "dataset.1.folder"} <= record["inputs"].keys()
    assert record["num_images"] == 8
    log = (run / "log.txt").read_text()
    assert "steps per epoch" in log
    assert "2 of 8 images are held out" in log
    report = (run / "report.html").read_text()
    assert "Concepts" in report
    assert "3 of 3" in report
    metrics = storage.read_jsonl(run / "metrics.jsonl")
    assert any({"clip_t", "clip_t_unrelated"} <= row.keys() for row in metrics)  # both triggers are subjects
    metadata = adapters.read_adapter_metadata(run / "adapter.safetensors")
    assert metadata["trigger"] == "sks, ohwx"
    (exported, *_) = export_adapter(run / "adapter.safetensors", "diffusers", data / "exports")
    assert storage.read_safetensors_metadata(exported.path)["modelspec.trigger_phrase"] == "sks, ohwx"


def test_class_images_of_all_concepts_are_one_set_without_any_trigger(data):
    class_images = [str(data / noun) for noun in NOUNS.values()]
    file = make_recipe(data, concepts(data, class_images=class_images))
    session = session_of(file)
    assert session.class_image_set is not None
    assert {item.folder.name for item in session.class_image_set.items} == {"dog", "cat"}
    assert {"dataset.0.class_images", "dataset.1.class_images"} <= session.input_hashes.keys()
    runs.make_dataset(data / "dog", 2, seed=10, trigger="ohwx")  # the trigger of the other concept
    with pytest.raises(DataError, match="a class image's caption has the trigger 'ohwx'"):
        session_of(file)


def test_output_preservation_replaces_every_trigger(data):
    from lorakit.training import regularization

    recipe = recipes.load_recipe(make_recipe(data, concepts(data), objective={"output_preservation": 1.0}))
    assert regularization.replace_trigger(recipe, "a sks dog and OHWX on a sofa") == "a dog and cat on a sofa"
    assert regularization.replace_trigger(recipe, "a boat") is None
    runs.make_dataset(data / "ohwx", 4, seed=1, trigger="cat")
    with pytest.raises(ConfigError, match="the trigger 'ohwx', and no image has one"):
        run_plan.plan_training(recipe, lambda text: None)


def test_a_finished_run_is_recognized_and_reproduced_from_moved_folders(data, capsys):
    file = make_recipe(data, concepts(data, repeats=[2, 1]))
    run = runs.train(file)
    recipe = recipes.load_recipe(file)
    assert start.finished_adapter(recipe) == run / "adapter.safetensors"
    assert start.finished_adapter(recipes.load_recipe(file, ["dataset.0.repeats=3"])) is None
    shutil.move(data / "ohwx", data / "moved")
    assert start.finished_adapter(recipes.load_recipe(file, [f"dataset.1.folder={data / 'moved'}"]))
    out = data / "again"
    with pytest.raises((ConfigError, DataError)):
        reproduce.prepare_reproduction(run, out, [])
    with pytest.raises(ConfigError, match=r"dataset\.1\.folder") as caught:
        reproduce.prepare_reproduction(run, out, [f"dataset.1.folder={data / 'sks'}"])
    assert "dataset.1.folder=..." in str(caught.value)
    plan = reproduce.prepare_reproduction(run, out, [f"dataset.1.folder={data / 'moved'}"])
    runs.train(Path(plan.recipe_file), *plan.overrides)
    assert reproduce.compare_runs(run, out).identical


@pytest.mark.parametrize("change", ["order", "image", "weight"])
def test_other_concepts_are_not_trained_on_with_the_same_run(change, data):
    file = make_recipe(data, concepts(data), train={"steps": 2, "batch_size": 1, "save_every": 1})
    with runs.killed_at(1):
        runs.train(file)
    dataset = concepts(data)
    if change == "order":
        dataset.reverse()
    if change == "weight":
        dataset[1]["weight"] = 2.0
    if change == "image":
        runs.make_dataset(data / "ohwx", 4, seed=7, trigger="ohwx cat")
    make_recipe(data, dataset, train={"steps": 2, "batch_size": 1, "save_every": 1})
    with pytest.raises(ConfigError, match="started with something else") as caught:
        runs.train(file)
    assert ("dataset.1.weight: 1.0 -> 2.0" if change == "weight" else "dataset.1.folder") in str(caught.value)


def test_the_stored_recipe_resumes_from_another_folder(data, monkeypatch):
    monkeypatch.chdir(data)
    dataset = [c | {"folder": c["trigger"]} for c in concepts(data)]
    run = runs.train(make_recipe(data, dataset, validate={"folder": "dog"}))
    monkeypatch.chdir("/")
    stored = recipes.load_recipe(run / "recipe.yaml")
    assert all(folder.is_absolute() for folder in data_folders.all_folders(stored).values())
    assert start.finished_adapter(stored) == run / "adapter.safetensors"
    assert RunFolder(run).record()["held_out"]["images"] == 2


def test_plain_folders_are_prepared_on_the_way(data):
    for name in (*NOUNS, "held"):
        folder = runs.make_dataset(data / name, 3, seed=ord(name[0]))
        for generated in (manifest.MANIFEST_FILE, manifest.METADATA_FILE):
            (folder / generated).unlink()
    (data / "held/0.txt").write_text("a photo")
    dataset = concepts(data, captions=[None, "one {trigger}"])
    file = make_recipe(data, dataset, resolution=64)
    assert main.main(["train", str(file)]) == 0
    captions = {name: {r.caption for r in manifest.load_manifest(data / name)} for name in NOUNS}
    assert captions == {"sks": {"a photo of sks dog"}, "ohwx": {"one ohwx"}}
