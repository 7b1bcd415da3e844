"""Held-out images: counted once each, copies on one side, a share of each concept; or another folder."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorakit import manifest
from lorakit.config import recipe as recipes
from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data.items import DatasetItem
from lorakit.manifest import Caption, Record
from lorakit.training import held_out, run_plan
from lorakit.training.held_out import DataSplit, split_dataset
from tests import runs

FIRST, SECOND = Concept(folder=Path("rex"), trigger="sks"), Concept(folder=Path("mia"), trigger="ohwx")


def image(number: int, concept: Concept = FIRST, **changes: Any) -> DatasetItem:
    """An image whose content is its number."""
    content = f"{number:064x}"
    record = Record(f"{number:03}.png", content, content, 64, 64, (Caption("a sks", "file"),))
    return DatasetItem(concept, dataclasses.replace(record, **changes), (0, 0, 64, 64), (64, 64))


def recipe(**validate: Any) -> Recipe:
    return recipes.parse_recipe({"base": "tiny-dit", "dataset": "d", "out": "o", "validate": validate})


def split(items: list[DatasetItem], fraction: float) -> DataSplit:
    return split_dataset(items, recipe(fraction=fraction))


def contents(items: list[DatasetItem]) -> set[str]:
    return {item.record.content_hash for item in items}


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(12, 0.04, 1), (2, 0.1, 1), (12, 0.125, 2), (6, 0.5, 3), (6, 0.99, 5), (100, 0.001, 1), (6, 0.0, 0)],
)
def test_a_fraction_holds_out_at_least_one_image_and_trains_on_one(count, fraction, expected):
    items = [image(number) for number in range(count)]
    result = split(items, fraction)
    assert len(result.held_out) == expected
    assert sorted(i.record.file for i in result.held_out + result.train) == [i.record.file for i in items]
    rounded_up = fraction and round(count * fraction) == 0
    assert any("is less than one" in note for note in result.notes) == bool(rounded_up)


def test_the_held_out_images_do_not_depend_on_the_order():
    items = [image(number) for number in range(9)]
    assert split(items[::-1], 0.4).held_out == split(items, 0.4).held_out[::-1]


@pytest.mark.parametrize(
    "items",
    [
        [image(0)],
        [image(0), image(0, file="copy.png")],
        [image(0, repeats=10)],
        [image(0), image(1, SECOND)],
    ],
)
def test_an_image_that_has_no_other_one_of_its_concept_is_not_held_out(items):
    with pytest.raises(DataError, match="held out only if another one of its concept") as caught:
        split(items, 0.5)
    assert "validate.fraction=0" in str(caught.value)


@pytest.mark.parametrize("repeats", [1, 3, 10])
def test_repeats_do_not_change_what_is_held_out(repeats):
    items = [image(number) for number in range(10)]
    concept = FIRST.model_copy(update={"repeats": repeats})
    repeated = [
        dataclasses.replace(i, concept=concept, record=dataclasses.replace(i.record, repeats=repeats))
        for i in items
    ]
    result = split(repeated, 0.3)
    assert contents(result.held_out) == contents(split(items, 0.3).held_out)
    assert len(result.held_out) == 3


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.75])
def test_copies_of_an_image_are_on_one_side_and_held_out_once(fraction):
    items = [image(number) for number in range(8)]
    copies = [image(number, file=f"copy-{number}.png") for number in range(0, 8, 2)]
    result = split([*items, *copies], fraction)
    assert not contents(result.held_out) & contents(result.train)
    assert len(result.held_out) == len(contents(result.held_out)) == max(1, round(8 * fraction))
    assert all(not item.record.file.startswith("copy") for item in result.held_out)


MIRRORED = ("1" * 16 + "2" * 16, "2" * 16 + "1" * 16)
ALIKE = ("1" * 16 + "a" * 16, "1" * 15 + "0" + "a" * 16)


@pytest.mark.parametrize("hashes", [MIRRORED, ALIKE, ALIKE[::-1]])
@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.6])
def test_near_duplicates_and_mirror_images_are_on_one_side(hashes, fraction):
    distinct = [image(n, phash=f"{n * 0x0F0F_0F0F_0F0F_0F0F % 2**64:016x}" * 2) for n in (1, 4, 9, 16)]
    pair = [image(100 + n, phash=text) for n, text in enumerate(hashes)]
    result = split([*distinct, *pair], fraction)
    assert (pair[0] in result.train) == (pair[1] in result.train)
    assert result.held_out


def test_images_that_are_all_alike_are_still_split_with_a_warning():
    items = [image(number, phash="1" * 32) for number in range(6)]
    result = split(items, 0.3)
    assert len(result.held_out) == 2
    assert any("near duplicates" in note for note in result.notes)


@pytest.mark.parametrize("phash", [None, "", "zz", "1" * 31])
def test_an_unusable_perceptual_hash_is_ignored(phash):
    assert len(split([image(number, phash=phash) for number in range(6)], 0.3).held_out) == 2


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ((10, 10), 0.2, (2, 2)),
        ((30, 10), 0.1, (3, 1)),
        ((50, 4), 0.1, (4, 1)),  # at least one of each
        ((20, 2), 0.5, (10, 1)),  # one of each stays
        ((10, 1), 0.2, (2, 0)),
        ((10, 10), 0.02, (1, 0)),
    ],
)
def test_every_concept_has_its_share_of_the_held_out_images(sizes, fraction, expected):
    items = [image(number) for number in range(sizes[0])]
    items += [image(1000 + number, SECOND) for number in range(sizes[1])]
    result = split(items, fraction)
    numbers = tuple(sum(item.concept == c for item in result.held_out) for c in (FIRST, SECOND))
    assert numbers == expected
    assert all(any(item.concept == c for item in result.train) for c in (FIRST, SECOND))
    assert any("no image of mia" in note for note in result.notes) == (expected[1] == 0)


def test_an_image_of_two_concepts_is_on_one_side_and_leaves_both_something_to_train_on():
    shared = [image(number, concept) for number in range(3) for concept in (FIRST, SECOND)]
    result = split([*shared, *(image(10 + n) for n in range(5))], 0.5)
    assert not contents(result.held_out) & contents(result.train)
    assert {item.concept for item in result.train} == {FIRST, SECOND}


# ---- auto: a few images of every subject that has enough --------------------------------------------------


def split_automatically(items: list[DatasetItem], **changes: Any) -> DataSplit:
    tree = {"base": "tiny-dit", "dataset": "d", "out": "o"}
    return split_dataset(items, recipes.parse_recipe(tree | changes))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 0), (5, 0), (11, 0), (12, 3), (19, 3), (20, 4), (24, 4), (200, 4)]
)
def test_by_default_three_or_four_images_of_a_large_enough_subject_are_held_out(count, expected):
    items = [image(number) for number in range(count)]
    result = split_automatically(items)
    assert len(result.held_out) == expected
    assert len(result.train) == count - expected
    assert split_automatically(items[::-1]).held_out == result.held_out[::-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"validate": {"fraction": 0}},
        {"validate": {"folder": "other"}},
        {"slider": dict.fromkeys(("target_prompt", "positive_prompt", "negative_prompt"), "a dog")},
    ],
)
def test_no_image_is_held_out_by_default_if_the_recipe_says_so_or_gives_others(changes):
    items = [image(number) for number in range(20)]
    assert split_automatically(items, **changes).held_out == []


def test_copies_do_not_count_and_single_images_are_held_out_first():
    hashes = [f"{(1 << number) - 1:064b}" for number in range(0, 64, 6)]  # far apart
    hashes = [f"{int(bits, 2) ^ 0x0F0F_3333_5555_00FF * (n % 2):016x}" * 2 for n, bits in enumerate(hashes)]
    alike = [image(100 + number, phash=hashes[0]) for number in range(8)]
    few = [image(number, phash=None) for number in range(11)]
    assert len(split_automatically([*few[:10], *alike]).held_out) == 0  # eleven different images
    result = split_automatically([*few, *alike])
    assert len(result.held_out) == 3
    assert not contents(result.held_out) & contents(alike)


def test_every_subject_with_enough_images_has_its_own_held_out_images():
    other = Concept(folder=Path("ordinary"))
    items = [image(number) for number in range(14)]
    items += [image(100 + number, SECOND, captions=(Caption("ohwx", "file"),)) for number in range(20)]
    items += [image(200 + number, SECOND.model_copy(update={"trigger": "zwx"})) for number in range(4)]
    items += [image(300 + number, other) for number in range(30)]
    held = split_automatically(items).held_out
    numbers = [sum(low <= int(i.record.file[:3]) < low + 100 for i in held) for low in (0, 100, 200, 300)]
    assert numbers == [3, 4, 0, 0]  # images of no subject tell nothing about fidelity


def test_two_folders_of_one_trigger_are_one_subject():
    second = FIRST.model_copy(update={"folder": Path("rex-2")})
    items = [image(number) for number in range(7)] + [image(100 + n, second) for n in range(7)]
    result = split_automatically(items)
    assert len(result.held_out) == 3
    assert {item.concept for item in result.train} == {FIRST, second}


def test_images_without_the_trigger_word_are_not_held_out_by_default():
    named = [image(number) for number in range(12)]
    ordinary = [image(100 + number, captions=(Caption("a ring", "file"),)) for number in range(40)]
    held = contents(split_automatically([*ordinary, *named]).held_out)
    assert len(held) == 3
    assert held <= contents(named)


@pytest.mark.parametrize("count", [6, 12])
def test_the_log_says_that_images_are_held_out_by_default_and_how_to_train_on_them(count):
    result = split_automatically([image(number) for number in range(count)])
    lines = " ".join(held_out.summary(result, recipe()))
    assert ("3 of 12 images are held out: rex/" in lines) == (count == 12)
    assert ("validate.fraction=0 trains on all images" in lines) == (count == 12)


@pytest.mark.parametrize(
    ("value", "words"),
    [("half", "auto"), (1, "must be below 1"), (-0.1, "at least 0"), (True, "auto"), ([0.1], "not a number")],
)
def test_a_fraction_that_is_none_is_refused(value, words):
    with pytest.raises(ConfigError, match=r"validate\.fraction") as caught:
        recipe(fraction=value)
    assert words in str(caught.value)


# ---- lines for the log, and a folder -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "fraction", "words"),
    [
        (12, 0.04, "1 of 12 images are held out: rex/"),
        (12, 0.25, "3 of 12 images are held out: rex/"),
        (40, 0.5, " and 15 more"),
    ],
)
def test_the_log_names_the_held_out_images(count, fraction, words):
    loaded = recipe(fraction=fraction, every=100)
    lines = list(held_out.summary(split([image(n) for n in range(count)], fraction), loaded))
    assert any(words in line for line in lines)
    assert not any("validate.every" in line for line in lines)


@pytest.mark.parametrize(
    ("validate", "held", "words"),
    [
        ({"every": 10}, [], "validate.every has no effect"),
        ({"fraction": 0.1, "every": 100_000}, [image(0)], "is above train.steps"),
        ({"folder": "other", "every": 100_000}, [image(0)], "is above train.steps"),
    ],
)
def test_a_validation_that_never_happens_is_said(validate, held, words):
    lines = list(held_out.summary(DataSplit([image(1)], held), recipe(**validate)))
    assert any(words in line for line in lines)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_images_of_the_validation_folder_that_are_trained_on_are_refused(shared):
    train = [image(number) for number in range(6)]
    other = [image(number, SECOND) for number in (*range(shared), 100)]
    with pytest.raises(DataError, match=f"{shared} images of validate.folder are also trained on") as caught:
        held_out.check_separate(other, train)
    assert "mia/000.png = rex/000.png" in str(caught.value)
    held_out.check_separate([image(100, SECOND)], train)


def test_held_out_images_among_the_class_images_are_a_warning():
    assert any(
        "class images too" in line
        for line in held_out.leakage_notes([image(0)], [image(1)], [image(0, SECOND)])
    )
    near = held_out.leakage_notes([image(0, phash=MIRRORED[0])], [image(1, phash=MIRRORED[1])], [])
    assert [line for line in near if "near duplicates" in line]
    assert not list(held_out.leakage_notes([image(0)], [image(1)], [image(2)]))


def test_a_fraction_and_a_folder_are_refused_together():
    with pytest.raises(ConfigError, match="two ways to choose images"):
        recipe(fraction=0.1, folder="other")


def plan(folder: Path, **changes: Any) -> tuple[run_plan.TrainingPlan, list[str]]:
    """The plan of a run on six images, and its log."""
    data = folder / "data"
    if not data.exists():
        runs.make_dataset(data)
    file = runs.make_recipe(folder / "r.yaml", "tiny-dit", data, folder / "run", **changes)
    log: list[str] = []
    return run_plan.plan_training(recipes.load_recipe(file), log.append), log


def test_a_validation_folder_is_measured_and_no_image_of_the_dataset_is_held_out(tmp_path):
    other = runs.make_dataset(tmp_path / "other", 3, seed=1)
    planned, log = plan(tmp_path, validate={"folder": str(other)})
    assert (len(planned.split.train), len(planned.split.held_out)) == (6, 3)
    assert {item.folder for item in planned.split.held_out} == {other}
    assert len(planned.all_items) == 9
    assert "held_out" not in planned.input_hashes  # it decides no byte of the adapter
    assert any("validation loss: measured on 3 images: other/0.png" in line for line in log)


@pytest.mark.parametrize("kind", ["same images", "changed file", "no caption", "no folder"])
def test_a_validation_folder_is_checked_like_the_dataset(kind, tmp_path):
    other = runs.make_dataset(tmp_path / "other", 2, seed=0 if kind == "same images" else 1)
    if kind == "changed file":
        (other / "0.png").write_bytes((other / "1.png").read_bytes())
    if kind == "no caption":
        records = [dataclasses.replace(r, captions=()) for r in manifest.load_manifest(other)]
        manifest.save_manifest(other, records)
    if kind == "no folder":
        shutil.rmtree(other)
    words = {
        "same images": "2 images of validate.folder are also trained on",
        "changed file": "has changed since the dataset was prepared",
        "no caption": "2 images have no caption",
        "no folder": "no manifest",
    }
    with pytest.raises(DataError, match=words[kind]):
        plan(tmp_path, validate={"folder": str(other)})


def test_another_set_of_held_out_images_is_another_input(tmp_path):
    first, _ = plan(tmp_path, validate={"fraction": 0.34})
    records = manifest.load_manifest(tmp_path / "data")
    phash = {item.record.file: "1" * 32 for item in (first.split.held_out[0], first.split.train[0])}
    manifest.save_manifest(
        tmp_path / "data", [dataclasses.replace(r, phash=phash.get(r.file)) for r in records]
    )
    second, _ = plan(tmp_path, validate={"fraction": 0.34})
    assert first.input_hashes["dataset"] == second.input_hashes["dataset"]
    assert first.input_hashes["held_out"] != second.input_hashes["held_out"]


def test_repeated_images_are_validated_once(tmp_path):
    data = runs.make_dataset(tmp_path / "data")
    records = [dataclasses.replace(r, repeats=5) for r in manifest.load_manifest(data)]
    manifest.save_manifest(data, records)
    settings = {"validate": {"fraction": 0.34}, "train": {"steps": 1, "precision": "fp32"}}
    run = runs.train(runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", **settings))
    record = storage.read_json(run / "run.json")
    assert record["held_out"]["images"] == 2
    assert record["concepts"][0]["samples_per_epoch"] == 20
    assert "2 of 6 images are held out: data/" in (run / "log.txt").read_text()


def test_another_validation_folder_on_resuming_is_said_and_changes_no_weight(tmp_path):
    data = runs.make_dataset(tmp_path / "data")
    folders = [str(runs.make_dataset(tmp_path / f"other-{seed}", 2, seed=seed)) for seed in (1, 2)]
    settings = {"train": {"steps": 2, "batch_size": 2, "save_every": 1, "precision": "fp32"}}

    def recipe_file(name: str, folder: str) -> Path:
        changes = settings | {"validate": {"folder": folder, "every": 1}}
        return runs.make_recipe(tmp_path / f"{name}.yaml", "tiny-dit", data, tmp_path / name, **changes)

    with runs.killed_at(1):
        runs.train(recipe_file("run", folders[0]))
    run = runs.train(recipe_file("run", folders[1]))
    assert "the held-out images are not those of the earlier sessions" in (run / "log.txt").read_text()
    whole = runs.train(recipe_file("whole", folders[0]))
    adapters = [(one / "adapter.safetensors").read_bytes() for one in (run, whole)]
    assert adapters[0] == adapters[1]
