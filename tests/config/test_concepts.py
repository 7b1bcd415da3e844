"""The dataset of a recipe as a list of concepts: one representation, contradictions, overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorakit.config import recipe
from lorakit.config.caption_use import CaptionUse
from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe, training_settings
from lorakit.core.errors import ConfigError

REX = {"folder": "photos/rex", "trigger": "sks", "class_noun": "dog"}
MIA = {"folder": "photos/mia", "trigger": "ohwx", "class_noun": "cat"}


def parse(dataset: Any, **changes: Any) -> Recipe:
    return recipe.parse_recipe({"base": "tiny-dit", "dataset": dataset, "out": "run"} | changes)


def problem(dataset: Any, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(dataset, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "changes", "expected"),
    [
        ("photos", {}, [Concept(folder=Path("photos"))]),
        (
            "photos/rex",
            {"trigger": "sks", "class_noun": "dog", "class_images": "dogs"},
            [Concept(**REX, class_images=Path("dogs"))],
        ),
        (
            [REX, MIA | {"repeats": 3, "weight": 2}],
            {},
            [Concept(**REX), Concept(**MIA, repeats=3, weight=2.0)],
        ),
    ],
)
def test_a_folder_and_a_list_are_the_same_concepts(dataset, changes, expected):
    use = {"caption_use": CaptionUse()}
    assert list(parse(dataset, **changes).concepts) == [one.model_copy(update=use) for one in expected]


def test_triggers_and_folders_are_those_of_all_concepts():
    loaded = parse([REX, MIA | {"class_images": "cats"}, {"folder": "others"}])
    assert loaded.triggers == ("sks", "ohwx")
    assert {key: str(folder) for key, folder in loaded.data_folders.items()} == {
        "dataset.0.folder": "photos/rex",
        "dataset.1.folder": "photos/mia",
        "dataset.1.class_images": "cats",
        "dataset.2.folder": "others",
    }
    assert parse("photos").data_folders == {"dataset": Path("photos")}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ([], "dataset: the list has no concept"),
        ([{"trigger": "sks"}], "dataset.0.folder: this key is required"),
        ([REX, MIA | {"triger": "x"}], "dataset.1.triger: unknown key; did you mean 'trigger'?"),
        ([REX | {"num_repeat": 2}], "dataset.0.num_repeat: unknown key; did you mean 'repeats'?"),
        ([{"image_dir": "photos"}], "dataset.0.image_dir: unknown key; did you mean 'folder'?"),
        (["photos", "others"], "dataset.1: 'others' is not a mapping of keys to values"),
        (REX, "concepts stand in a list"),
        ([REX | {"repeats": 0}], "dataset.0.repeats: 0 is too small"),
        ([REX | {"repeats": 1.5}], "dataset.0.repeats"),
        ([REX | {"weight": 0}], "dataset.0.weight: 0 is too small"),
        ([REX | {"weight": float("nan")}], "dataset.0.weight"),
        ([REX | {"trigger": " sks"}], "dataset.0.trigger: it is empty, or begins or ends with a space"),
    ],
)
def test_a_wrong_list_of_concepts_is_named_with_the_number_of_the_concept(dataset, words):
    text = problem(dataset)
    assert words in text
    assert text.count("\n") <= 3  # one line for each problem, with head and place


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"trigger": "SKS", "class_noun": "dog"}, "'sks' and 'SKS' differ only in case"),
        ({"trigger": "sks", "class_noun": "cat"}, "both have the trigger 'sks' with different class nouns"),
        ({"trigger": "sks dog"}, "'sks' is part of the trigger 'sks dog'"),
        ({"trigger": "old Sks"}, "'sks' is part of the trigger 'old Sks'"),
        ({"trigger": "zwx", "class_noun": "sks"}, "'sks' of dataset.0 is in the class noun 'sks'"),
        ({"class_noun": "big SKS"}, "is in the class noun 'big SKS'"),
    ],
)
def test_triggers_that_cannot_be_told_apart_are_refused(second, words):
    text = problem([REX, {"folder": "photos/mia"} | second])
    assert words in text
    assert "dataset.0 and dataset.1" in text


@pytest.mark.parametrize(
    "second",
    [
        {"trigger": "sks", "class_noun": "dog"},  # a second folder of the same subject
        {"trigger": "sksy", "class_noun": "dog"},
        {"trigger": "zwx", "class_noun": "dog"},
        {"class_noun": "dog"},
        {},
    ],
)
def test_triggers_that_can_be_told_apart_are_accepted(second):
    assert len(parse([REX, {"folder": "photos/mia"} | second]).concepts) == 2


@pytest.mark.parametrize("key", ["trigger", "class_noun", "class_images"])
def test_a_key_of_the_whole_recipe_that_belongs_to_each_concept_is_refused(key):
    text = problem([REX, MIA], **{key: "word"})
    assert f"`{key}` belongs to each concept" in text
    assert f"{key}=null" in text
    tree = {"base": "tiny-dit", "dataset": [REX], "out": "run", key: "word"}
    assert recipe.change_recipe(recipe.parse_recipe(tree | {key: None}), [f"{key}=null"]).concepts


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a photo of {trigger} {noun}", "{noun} is not known: write {trigger} or {class_noun}"),
        ("a {class_noun}", "it has {class_noun}, and there is no class_noun"),
        ("a {trigger.__class__}", "{trigger.__class__} is not known"),
        ("a {trigger", "braces stand for {trigger} or {class_noun} only"),
        ("a {{trigger}}", "braces stand for"),
    ],
)
def test_a_caption_template_that_cannot_be_filled_is_refused(template, words):
    text = problem([{"folder": "photos", "trigger": "sks", "captions": template}])
    assert "dataset.0.captions" in text
    assert words in text


@pytest.mark.parametrize(
    ("template", "caption"),
    [
        (None, "a photo of sks dog"),
        ("{trigger}, a {class_noun} indoors", "sks, a dog indoors"),
        ("a plain caption", "a plain caption"),
    ],
)
def test_a_template_is_filled_with_the_words_of_its_concept(template, caption):
    assert Concept(**REX, captions=template).template_caption == caption
    assert Concept(folder=Path("photos")).template_caption is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"output_preservation": 1.0}}, "objective.output_preservation needs both names"),
        ({"objective": {"prior_loss_weight": 2.0}}, "objective.prior_loss_weight needs `class_images`"),
        (
            {"slider": {"target_prompt": "a", "positive_prompt": "b", "negative_prompt": "c"}},
            "slider has a loss of its own: leave out the list of concepts",
        ),
    ],
)
def test_a_part_of_the_objective_needs_its_keys_in_the_concepts(changes, words):
    assert words in problem([REX, {"folder": "photos/mia", "trigger": "ohwx"}], **changes)


def test_one_folder_of_class_images_cannot_have_two_class_nouns():
    assert "cannot show both 'dog' and 'cat'" in problem([c | {"class_images": "all"} for c in (REX, MIA)])
    assert parse([c | {"class_images": "dogs", "class_noun": "dog"} for c in (REX, MIA)])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("dataset.1.repeats=4", lambda r: r.concepts[1].repeats == 4),
        ("dataset.0.folder=elsewhere", lambda r: r.concepts[0].folder == Path("elsewhere")),
        ("dataset=photos", lambda r: [c.folder for c in r.concepts] == [Path("photos")]),
        ("dataset=[{folder: a, trigger: zwx}]", lambda r: r.triggers == ("zwx",)),
    ],
)
def test_an_override_changes_one_concept_or_the_whole_dataset(override, value):
    assert value(recipe.change_recipe(parse([REX, MIA]), [override]))


@pytest.mark.parametrize(
    ("dataset", "override", "words"),
    [
        ([REX, MIA], "dataset.2.repeats=3", "this recipe has 2 concepts"),
        ([REX, MIA], "dataset.repeats=3", "this recipe has 2 concepts"),
        ([REX, MIA], "dataset.rex.repeats=3", "numbers 0 to 1"),
        ([REX, MIA], "dataset.-1.repeats=3", "this recipe has 2 concepts"),
        ([REX], "dataset.0=photos", "dataset.0.repeats=2"),
        ("photos", "dataset.0.repeats=3", "'dataset=[{folder: photos, repeats: 2}]'"),
        ("photos", "dataset.repeats=3", "is one folder, not a list of concepts"),
    ],
)
def test_an_override_of_a_concept_that_is_not_there_names_the_right_form(dataset, override, words):
    with pytest.raises(ConfigError) as caught:
        recipe.change_recipe(parse(dataset), [override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "decides"),
    [
        ("repeats", 2, True),
        ("weight", 0.5, True),
        ("trigger", "zwx", True),
        ("captions", "a {trigger}", True),
        ("folder", "moved", False),
        ("class_images", "moved", False),
    ],
)
def test_settings_of_concepts_decide_the_adapter_and_their_folders_do_not(key, value, decides):
    first, second = parse([REX, MIA]), parse([REX, MIA | {key: value}])
    assert (training_settings(first) != training_settings(second)) == decides


def test_a_list_of_concepts_is_the_same_after_a_recipe_file():
    loaded = parse([REX | {"weight": 2}, MIA])
    assert recipe.parse_recipe(loaded.dump()) == loaded
    assert recipe.resolve_recipe(loaded, out="other").concepts == loaded.concepts
