"""The grid of a sweep: names, combinations and refusals."""

import pytest

from lorakit.config.recipe import parse_recipe
from lorakit.core.errors import ConfigError
from lorakit.training.sweep import grid

RECIPE = parse_recipe({"base": "tiny-dit", "dataset": "photos", "out": "runs/dog", "train": {"steps": 5}})


def test_a_member_is_trained_for_each_combination_in_a_folder_of_its_name(tmp_path):
    axes = grid.parse_axes(["adapter.rank=4,16", "optimizer.lr=1e-4,0.0003"])
    members = grid.build_members(RECIPE, axes, tmp_path)
    assert [one.name for one in members] == ["rank4-lr1e-4", "rank4-lr3e-4", "rank16-lr1e-4", "rank16-lr3e-4"]
    assert [(one.recipe.adapter.rank, one.recipe.optimizer.lr) for one in members][2] == (16, 1e-4)
    assert {one.recipe.out for one in members} == {tmp_path / one.name for one in members}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["optimizer.name=adamw,lion"], ["adamw", "lion"]),
        (["optimizer.betas=[0.9, 0.99],[0.8, 0.9]"], ["betas0.9-0.99", "betas0.8-0.9"]),
        (["train.ema_decay=null,0.9"], ["none", "ema_decay0.9"]),
    ],
)
def test_values_become_names_that_file_systems_accept(words, names, tmp_path):
    members = grid.build_members(RECIPE, grid.parse_axes(words), tmp_path)
    assert [one.name for one in members] == names


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("resolution=64,128", "cannot vary resolution: the members share the images in the cache"),
        ("base=tiny-unet,tiny-dit", "cannot vary base: the members share one base model"),
        ("memory.quantize=nf4,int8", "cannot vary memory.quantize"),
        ("adapter.text_encoder=true,false", "which networks are loaded"),
        ("train.save_every=1,2", "not a setting of how one adapter is trained"),
        ("adapter.rnk=4,8", "unknown recipe key 'adapter.rnk'"),
        ("adapter.rank=4,4", "two members have the name rank4"),
        ("adapter.rank=", "not of the form key=value,value"),
        ("adapter.rank=4,zero", "adapter.rank"),
        (f"train.seed={','.join(map(str, range(65)))}", "65 combinations are more than a sweep trains"),
    ],
)
def test_a_grid_that_cannot_be_trained_together_is_refused_with_the_reason(word, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        grid.build_members(RECIPE, grid.parse_axes([word]), tmp_path)


def test_a_mapping_of_values_gives_the_members_of_the_same_words(tmp_path):
    axes = grid.axes_of({"optimizer.lr": [1e-4, 3e-4], "adapter.type": ["lora", "dora"]})
    words = grid.parse_axes(["optimizer.lr=1e-4,3e-4", "adapter.type=lora,dora"])
    first, second = (grid.build_members(RECIPE, one, tmp_path) for one in (axes, words))
    assert [(m.name, m.recipe) for m in first] == [(m.name, m.recipe) for m in second]
