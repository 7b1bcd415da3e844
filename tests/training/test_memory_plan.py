"""The memory settings of a run: what run.json keeps for its next sessions, and shapes they are planned by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorakit.config.recipe import load_recipe
from lorakit.core import storage
from lorakit.models import families
from lorakit.planner.text_shapes import text_shapes
from lorakit.training import memory_plan, reproduce, run_demand, run_memory, run_plan
from lorakit.training.run_caches import RunCaches
from lorakit.training.run_folder import RunFolder
from tests import runs, tiny

CPU = torch.device("cpu")
PLANNED = {
    "quantize": "int8", "stream": 0.0, "gradient_checkpointing": 0.5,
    "offload_activations": False, "offload_modulation": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def planned_run(tmp_path_factory):
    """A recipe on a tiny model, its plan, and its caches, with nothing in them."""
    folder = tmp_path_factory.mktemp("run")
    data = runs.make_dataset(folder / "data", 2)
    base = tiny.tiny_folder("sd15")
    train = {"steps": 4, "batch_size": 4, "precision": "fp32"}
    file = runs.make_recipe(folder / "recipe.json", base, data, folder / "out", train=train)
    loaded = load_recipe(file)
    plan = run_plan.plan_training(loaded, lambda text: None)
    return loaded, plan, RunCaches(loaded, plan, CPU, lambda text: None)


def entry(**changes) -> dict:
    return {"device": "cpu", "settings": {**PLANNED}, "images_at_once": 2} | changes


def write_record(folder: Path, memory: object) -> None:
    """Write a run.json with an entry `memory`."""
    counts = {"train.steps": 4, "train.batch_size": 4, "train.accumulate": 1}
    record = {"settings": counts, "inputs": {"num_processes": 1}, "versions": {}, "status": "running"}
    storage.write_json(folder / "run.json", record | {"memory": memory})


def decide(planned_run, recorded=None, *overrides):
    loaded, plan, caches = planned_run
    return memory_plan.decide_memory(
        memory_plan.change_recipe(loaded, list(overrides)), plan, caches, CPU, lambda text: None, recorded
    )


def test_a_resumed_run_keeps_all_settings_on_the_same_device(planned_run):
    decided = decide(planned_run, entry())
    assert decided.settings.to_json() == PLANNED
    assert decided.micro_batch == 2
    assert decided.to_json("cpu") == entry()


def test_another_device_keeps_the_quantization_and_plans_the_rest(planned_run):
    decided = decide(planned_run, entry(device="NVIDIA GeForce RTX 3060"))
    assert decided.settings.quantize == "int8"
    assert decided.settings.gradient_checkpointing == 0  # this machine needs none
    assert decided.to_json("cpu")["device"] == "cpu"


def test_the_recipe_decides_over_what_is_recorded(planned_run):
    decided = decide(planned_run, entry(), "memory.gradient_checkpointing=1", "memory.quantize=none")
    assert decided.settings.gradient_checkpointing == 1
    assert decided.settings.quantize is None


def test_what_had_to_be_planned_is_recorded_with_its_predictions(planned_run, monkeypatch):
    monkeypatch.setattr(memory_plan, "free_bytes", lambda device: 0)  # so that nothing fits unplanned
    lines = []
    loaded, plan, caches = planned_run
    plain = entry(device="another", settings={**PLANNED, "quantize": None})
    decided = memory_plan.decide_memory(loaded, plan, caches, CPU, lines.append, plain)
    assert decided.settings.quantize is None  # as recorded, however little memory is free
    values = decided.to_json("cpu")
    assert values["predicted"]["peak_bytes"] > 0
    assert values["predicted"]["step_seconds"] > 0
    assert any(line.startswith("memory: ") and "predicted: peak" in line for line in lines)
    assert memory_plan.decided_from(values).settings == decided.settings


@pytest.mark.parametrize(
    "damaged",
    [
        None, [], {}, entry(device=3), entry(images_at_once=0), entry(images_at_once=True),
        entry(settings={}), entry(settings={**PLANNED, "quantize": "int3"}),
    ],
)  # fmt: skip
def test_a_damaged_entry_is_planned_again(tmp_path, damaged):
    write_record(tmp_path, damaged)
    assert run_memory.MemoryRecord(RunFolder(tmp_path)).read() is None
    assert reproduce._recorded_memory({"memory": damaged}) == []


def test_a_reproduction_has_the_recorded_settings_as_overrides(planned_run):
    loaded, *_ = planned_run
    overrides = reproduce._recorded_memory({"memory": entry(settings={**PLANNED, "quantize": None})})
    again = memory_plan.change_recipe(loaded, overrides)
    fixed = vars(memory_plan.fixed_settings(again))
    assert fixed == {**PLANNED, "quantize": "none"}


@pytest.mark.parametrize("overrides", [(), ("memory.quantize=nf4",)])
def test_an_evaluation_loads_the_weights_in_the_recorded_form(planned_run, tmp_path, overrides):
    loaded, *_ = planned_run
    write_record(tmp_path, entry())
    recipe = memory_plan.change_recipe(loaded, list(overrides))
    found = run_memory.with_recorded_quantization(recipe, tmp_path)
    assert found.memory_config.quantize == ("nf4" if overrides else "int8")


CAPTIONS = ["a fox", "a red fox that sleeps under a tall old tree in the snow, at dawn"]


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux1-dev", "qwen-image", "z-image", "sana"])
def test_the_shapes_of_a_text_are_those_that_its_encoders_return(name):
    folder = tiny.tiny_folder(name)
    family = families.detect_family(folder, ())
    pipe = family.load(folder, dtype=torch.float32)
    encoded = family.encode_text(pipe, CAPTIONS, (64, 64))
    for captions, cond in ((CAPTIONS[:1], encoded[0]), (CAPTIONS, encoded[1])):
        shapes = text_shapes(family, folder, captions, (64, 64))
        assert shapes.keys() == cond.keys()
        assert {key: shape for key, (shape, _) in shapes.items()} == {
            key: tuple(value.shape) for key, value in cond.items()
        }


def test_texts_in_the_cache_are_planned_by_the_longest(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    data = _dataset_with_captions(tmp_path / "data")
    file = runs.make_recipe(tmp_path / "r.json", tiny.tiny_folder("z-image"), data, tmp_path / "out")
    loaded = load_recipe(file)
    plan = run_plan.plan_training(loaded, lambda text: None)
    caches = RunCaches(loaded, plan, CPU, lambda text: None)
    assert run_demand.cached_shapes(caches, plan) is None
    caches.fill_text(plan.items)
    lengths = {
        item.record.caption: caches.text.find(caches.images.text_request(item.record.caption, item))
        for item in plan.items
    }
    sizes = {caption: text["prompt_embeds"].shape for caption, text in lengths.items()}
    assert len(set(sizes.values())) == 2
    shapes = run_demand.cached_shapes(caches, plan)
    assert shapes["prompt_embeds"][0] == tuple(sizes[CAPTIONS[1]])


def _dataset_with_captions(folder: Path) -> Path:
    """Write images whose largest has the shorter caption."""
    from dataclasses import replace

    from lorakit import manifest

    runs.make_dataset(folder, 2)
    records = manifest.load_manifest(folder)
    captions = [CAPTIONS[1], CAPTIONS[0]]
    changed = [
        replace(record, captions=(manifest.Caption(text, "hand"),))
        for record, text in zip(records, captions, strict=True)
    ]
    manifest.save_manifest(folder, changed)
    return folder
