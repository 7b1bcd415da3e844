"""The facts of a run, read from its recipe, record and dataset: numbers of images and captions, settings, the
match of captions and images by CLIP. A dataset that is gone costs facts, not the evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorakit.config.recipe import Recipe, resolve_recipe
from lorakit.evaluation.read_facts import read_run_facts
from lorakit.evaluation.run_facts import RunFacts
from lorakit.models import clip_score
from lorakit.quickstart import shape_world
from lorakit.quickstart.concept import DemoConcept
from tests.evaluation import embedded

RECORD = {
    "inputs": {"num_processes": 2},
    "concepts": [
        {
            "folder": "data",
            "trigger": "striped",
            "images": 9,
            "held_out": 3,
            "captions": 6,
            "captions_with_trigger": 5,
            "samples_per_epoch": 6,
        }
    ],
}


@pytest.fixture(scope="module")
def clip():
    return clip_score.load_clip_scorer(clip_score.EMBEDDED, "clip_model")


def recipe(tmp_path: Path, **changes) -> Recipe:
    tree = {
        "base": "tiny-dit",
        "dataset": str(tmp_path / "data"),
        "out": str(tmp_path / "run"),
        "trigger": "striped",
        "adapter": {"rank": 8, "alpha": 4},
        "optimizer": {"lr": 2e-4},
        "train": {"steps": 60, "batch_size": 5},
        "validate": {"fraction": 0},
    }
    return resolve_recipe(tree | changes)


def test_settings_and_epochs_are_read(tmp_path):
    embedded.dataset(tmp_path / "data", 6)
    facts = read_run_facts(recipe(tmp_path), RECORD)
    assert (facts.method, facts.rank, facts.alpha) == ("lora", 8, 4)
    assert (facts.lr, facts.num_steps, facts.epochs) == (2e-4, 60, 100)


@pytest.mark.parametrize(("subject", "ordinary", "fraction", "trained"), [(6, 4, 0, 6), (1, 3, 0, 1)])
def test_images_of_the_subject_are_those_with_the_trigger_word(
    tmp_path, subject, ordinary, fraction, trained
):
    embedded.dataset(tmp_path / "data", subject, ordinary=ordinary)
    facts = read_run_facts(recipe(tmp_path, validate={"fraction": fraction}), RECORD)
    (concept,) = facts.concepts
    assert (facts.num_images, concept.num_images, concept.num_with_trigger) == (trained,) * 3


def test_held_out_images_are_not_counted(tmp_path):
    embedded.dataset(tmp_path / "data", 8)
    assert read_run_facts(recipe(tmp_path, validate={"fraction": 0.25}), RECORD).num_images == 6


def test_a_trigger_word_in_no_caption_leaves_all_images_and_none_with_it(tmp_path):
    scenes = embedded.CONCEPT.scenes(5, seed=1)
    captions = [shape_world.scene_caption(scene, omit=["style"]) for scene in scenes]
    embedded.write_images(tmp_path / "data", scenes, captions)
    (concept,) = read_run_facts(recipe(tmp_path), RECORD).concepts
    assert (concept.num_images, concept.num_with_trigger) == (5, 0)


def test_equal_images_and_equal_captions_count_once(tmp_path):
    scene = embedded.CONCEPT.scenes(1, seed=1)[0]
    embedded.write_images(tmp_path / "data", [scene] * 4)
    (concept,) = read_run_facts(recipe(tmp_path), RECORD).concepts
    assert (concept.num_images, concept.num_distinct, concept.num_distinct_captions) == (4, 1, 1)


def test_without_the_dataset_the_numbers_of_the_record_remain(tmp_path, clip):
    facts = read_run_facts(recipe(tmp_path), RECORD, clip, quiet=True)
    (concept,) = facts.concepts
    assert (concept.num_images, concept.num_with_trigger) == (6, 5)
    assert facts.num_images is None
    assert facts.caption_match is None
    assert "the dataset cannot be read" in facts.unknown[0]


def test_an_image_that_is_gone_costs_only_the_comparison(tmp_path, clip, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))  # another test may have encoded the image
    embedded.dataset(tmp_path / "data", 8)
    (tmp_path / "data/03.png").unlink()
    facts = read_run_facts(recipe(tmp_path), RECORD, clip, quiet=True)
    assert facts.num_images == 8
    assert facts.caption_match is None
    assert "captions were not compared" in facts.unknown[-1]


@pytest.mark.parametrize(("shuffled", "low", "high"), [(False, 0.7, 1.01), (True, -1.0, 0.35)])
def test_captions_are_compared_with_their_images(tmp_path, clip, shuffled, low, high):
    embedded.dataset(tmp_path / "data", 12, shuffled=shuffled)
    facts = read_run_facts(recipe(tmp_path), RECORD, clip, quiet=True)
    assert low < facts.caption_match.share.mean < high
    assert facts.subject_groups is None
    assert RunFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@pytest.mark.parametrize("words", [("striped", "neon"), ("star", "moon")])
@pytest.mark.parametrize("is_split", [False, True])
def test_two_subjects_under_one_trigger_word_form_two_groups(tmp_path, clip, words, is_split):
    scenes = [scene for word in words for scene in DemoConcept(word).scenes(12, seed=1)]
    captions = [shape_world.scene_caption(s, replace_words=dict.fromkeys(words, "sks")) for s in scenes]
    changes = {"trigger": "sks"}
    if is_split:
        folders = [tmp_path / word for word in words]
        for number, folder in enumerate(folders):
            half = slice(12 * number, 12 * number + 12)
            embedded.write_images(folder, scenes[half], captions[half])
        changes = {"trigger": None, "dataset": [{"folder": str(f), "trigger": "sks"} for f in folders]}
    else:
        embedded.write_images(tmp_path / "data", scenes, captions)
    facts = read_run_facts(recipe(tmp_path, **changes), RECORD, clip, quiet=True)
    groups = facts.subject_groups
    assert groups.trigger == "sks"
    assert {len(names) for names in groups.names} == {12}
    assert groups.folders is None or set(groups.folders) == set(words)
    assert (groups.folders is not None) == is_split
    assert RunFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    shutil.rmtree(tmp_path)
