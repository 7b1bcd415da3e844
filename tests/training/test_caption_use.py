"""Runs whose tags change with each use: caches, resuming, processes, warnings and the words of the log."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit import manifest
from lorakit.config import recipe as recipes
from lorakit.core.errors import DataError
from lorakit.data import batch_sampler
from lorakit.models import loading
from lorakit.training import run_caches, run_plan
from tests import runs
from tests.training.training_steps import training_step

SHUFFLED = {"shuffle_tags": True, "keep_first": 1, "tag_dropout": 0.2, "caption_dropout": 0.1}
TAGS = "sks, red {}, round, ring, shiny, big"
LONG = "A picture of noise in many colors, made by a program for a test."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with a list of tags each, and a sentence by a model."""
    folder = runs.make_dataset(tmp_path_factory.mktemp("data"), 4)
    return set_captions(folder, lambda i: [(TAGS.format(i), "file"), (LONG, "model")])


def set_captions(folder: Path, captions: Any) -> Path:
    records = [
        dataclasses.replace(record, captions=tuple(manifest.Caption(*pair) for pair in captions(index)))
        for index, record in enumerate(manifest.load_manifest(folder))
    ]
    manifest.save_manifest(folder, records)
    return folder


def recipe_file(folder: Path, data: Path, **changes: Any) -> Path:
    train = {"steps": 2, "batch_size": 3, "save_every": 1, "precision": "fp32"}
    return runs.make_recipe(folder / "r.yaml", "tiny-dit", data, folder / "run", train=train, **changes)


def test_encoded_at_use_or_cached_killed_or_not_the_adapter_is_the_same_file(data, tmp_path, monkeypatch):
    """One run has too many texts for the cache and is killed; another one fills the cache."""
    changes = {"caption_use": SHUFFLED | {"weights": {"tags": 3, "sentences": 1}}, "trigger": "sks"}
    file = recipe_file(tmp_path / "at use", data, **changes)
    with runs.killed_at(1), monkeypatch.context() as patch:
        patch.setattr(run_caches, "MAX_VARIED_BYTES", 1)
        runs.train(file)
    resumed = runs.train(file, "memory.keep_text_encoders=true")
    log = (resumed / "log.txt").read_text()
    assert "the text encoders stay in memory and encode tags at each use: their texts would fill" in log
    assert (
        "captions: 8 captions of 4 images, 4 of them lists of tags; 75% tags, 25% sentences; tags in another"
        " order and 20% of the tags left out at each use (the first stays); 10% of the uses without a"
        " caption"
    ) in log
    cached = runs.train(recipe_file(tmp_path / "cached", data, **changes))
    assert "texts with other tags or another order" in (cached / "log.txt").read_text()
    first, second = ((run / "adapter.safetensors").read_bytes() for run in (resumed, cached))
    assert first == second
    assert "tags in another order" in (cached / "report.html").read_text()


def test_the_cache_holds_exactly_the_captions_of_the_run(data, tmp_path):
    step = training_step(tmp_path, data, caption_use=SHUFFLED, train={"steps": 6, "batch_size": 4})
    data_set = step.session.train_set
    used = set()
    for number in range(6):
        for sample in batch_sampler.step_samples(number, 4, data_set.caption_choices, 0):
            text, item = data_set.caption(sample), data_set.items[sample.image_index]
            used.add(text)
            batch = data_set.batch([sample], torch.device("cpu"))
            expected = step.session.family.encode_text(_text_encoders(step), [text], item.bucket)[0]
            for name, value in expected.items():
                assert torch.equal(batch.cond[name][0], value.cpu())
    assert len([text for text in used if text.startswith("sks")]) >= 6
    later = batch_sampler.sample_at(6 * 4 + 50, data_set.caption_choices, 0)
    assert later.tag_seed is None or data_set.caption(later) not in used


_PIPES: dict[str, Any] = {}


def _text_encoders(step: Any) -> Any:
    if "tiny" not in _PIPES:
        folder = step.session.base_folder
        parts = loading.text_components(step.session.family, folder)
        _PIPES["tiny"] = step.session.family.load(folder, dtype=torch.float32, only=parts)
    return _PIPES["tiny"]


def test_gradients_of_two_processes_with_varied_captions_add_up_to_the_whole_step(data, tmp_path):
    class_images = runs.make_dataset(tmp_path / "class", 3, trigger="no")
    set_captions(class_images, lambda i: [(f"red {i}, blue, green, dark, light", "file")])
    step = training_step(
        tmp_path,
        data,
        caption_use=SHUFFLED,
        trigger="sks",
        class_noun="round",
        class_images=str(class_images),
        objective={"output_preservation": 0.5},
    )
    samples = batch_sampler.step_samples(2, 4, step.session.train_set.caption_choices, 0)
    assert any(sample.tag_seed is not None for sample in samples)
    _, prior = step.regularization.terms(samples), step.session.class_image_set
    class_captions = [prior.caption(s) for s in step.regularization.terms(samples)[0].samples]
    assert any(text.split(", ")[1:] != ["blue", "green", "dark", "light"] for text in class_captions)
    assert "" not in class_captions
    values = []
    for own in (samples, batch_sampler.shard(samples, 0, 2), batch_sampler.shard(samples, 1, 2)):
        loss = float(step.compute_gradients(own))
        values.append([torch.tensor(loss), *(g.clone() for _, g in step.parameters.gradient_views())])
        step.parameters.zero_gradients()
    for whole, first, second in zip(*values, strict=True):
        assert torch.allclose(whole, (first + second) / 2, atol=1e-5)


def plan(folder: Path, data: Path, **changes: Any) -> tuple[run_plan.TrainingPlan, str]:
    """The plan of a run, and what it logs."""
    lines: list[str] = []
    recipe = recipes.load_recipe(recipe_file(folder, data, **changes))
    return run_plan.plan_training(recipe, lines.append), "\n".join(lines)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"shuffle_tags": True}, ["4 of 8 captions of", "are sentences, whose order stays", "0.png"]),
        ({"weights": {"tags": 1, "sentences": 0}}, ["leaves 4 captions of", "unused, of 0.png, 1.png"]),
        ({"weights": [0, 1]}, ["leaves 4 captions of"]),
        ({"weights": {"file": 1, "model": 1, "template": 2}}, ["no caption of", "is of 'template'"]),
        ({"keep_marker": "|||", "shuffle_tags": True}, ["has the marker '|||'"]),
        ({"tag_separator": ";", "tag_dropout": 0.1}, ["is a list of tags, so that caption_use changes none"]),
        ({"weights": {"file": 1, "model": 3}}, []),
    ],
)
def test_what_is_not_used_is_named(keys, expected, data, tmp_path):
    _, log = plan(tmp_path, data, caption_use=keys)
    assert all(text in log for text in expected), log
    assert bool(expected) == ("caption" in log)


def test_images_without_any_weighted_caption_are_refused_by_name(data, tmp_path):
    with pytest.raises(DataError, match=r"uses no caption of 4 of 4 images: 0.png, 1.png") as caught:
        plan(tmp_path, data, caption_use={"weights": {"template": 1}})
    assert "a weight, too: file, model" in str(caught.value)


def test_each_concept_may_use_its_captions_in_its_own_way(data, tmp_path):
    other = set_captions(runs.make_dataset(tmp_path / "other", 3), lambda i: [("a, b, c, d", "file")])
    dataset = [
        {"folder": str(data)},
        {"folder": str(other), "caption_use": {"shuffle_tags": True, "versions": 2}},
    ]
    planned, _ = plan(tmp_path, data, dataset=dataset, caption_use={"weights": [0, 1]})
    first, second = planned.items[0], planned.items[-1]
    assert first.caption_use.weights == (0, 1)
    assert not first.caption_use.shuffle_tags
    assert second.caption_use.versions == 2
    assert second.caption_use.weights is None


def test_another_source_of_a_weighted_caption_is_another_run(data, tmp_path):
    by_source, _ = plan(tmp_path / "a", data, caption_use={"weights": {"file": 1, "model": 1}})
    by_form, _ = plan(tmp_path / "b", data, caption_use={"weights": {"tags": 1, "sentences": 1}})
    assert "caption_sources" not in by_form.input_hashes
    changed = runs.make_dataset(tmp_path / "data", 4)
    set_captions(changed, lambda i: [(TAGS.format(i), "metadata"), (LONG, "model")])
    weights = {"metadata": 1, "model": 1}
    other, _ = plan(tmp_path / "c", changed, caption_use={"weights": weights})
    assert other.input_hashes["dataset"] == by_source.input_hashes["dataset"]
    assert other.input_hashes["caption_sources"] != by_source.input_hashes["caption_sources"]
