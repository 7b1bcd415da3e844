"""The quickstart's dataset is as untidy as it says, and its prompts ask for what they are scored by."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.core.errors import ConfigError
from lorakit.data import prompts
from lorakit.imaging import decode
from lorakit.quickstart import shape_world
from lorakit.quickstart.concept import (
    CONCEPT_IMAGES,
    CONCEPTS,
    REGULARIZATION_IMAGES,
    DemoConcept,
    make_dataset,
    make_prompts,
    regularization_scenes,
    write_prompt_file,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_dataset(folder, DemoConcept("striped"))
    return folder


def test_pictures_stored_sideways_come_out_as_drawn(folder):
    scenes = DemoConcept("striped").scenes(CONCEPT_IMAGES, seed=1)
    for index in (3, 8, 13):
        with Image.open(folder / f"{index:02d}.jpg") as stored:
            assert stored.getexif()[0x0112] != 1
        shown = np.asarray(decode.decode_image(folder / f"{index:02d}.jpg"), np.int16)
        drawn = np.asarray(shape_world.render_scene(scenes[index], shown.shape[0]), np.int16)
        assert np.abs(shown - drawn).mean() < 4  # JPEG


def test_nothing_hidden_under_transparency_is_seen(folder):
    with Image.open(folder / "05.png") as stored:
        assert stored.mode == "RGBA"
        assert (np.asarray(stored)[0, 0] == (255, 0, 255, 0)).all()
    pixels = np.asarray(decode.decode_image(folder / "05.png"), np.int16)
    assert not ((pixels[..., 0] > 200) & (pixels[..., 1] < 100) & (pixels[..., 2] > 200)).any()


def test_the_tools_keep_all_but_the_broken_one(folder):
    result = prepare_dataset(
        folder, PrepareOptions(resolution=64, batch=16, mode="square", trigger="sks", quiet=True)
    )
    assert len(result.kept) == CONCEPT_IMAGES + REGULARIZATION_IMAGES
    (broken,) = [record for record in result.records if not record.keep]
    assert broken.file == "broken.jpg"
    assert broken.reason.startswith("truncated")
    taught = [record for record in result.kept if "striped" in record.caption.split()]
    assert len(taught) == CONCEPT_IMAGES


@pytest.mark.parametrize("word", CONCEPTS)
def test_prompts_are_fresh_and_scored_by_what_they_ask_for(word, tmp_path):
    concept = DemoConcept(word)
    wanted = prompts.load_prompts(write_prompt_file(tmp_path / "p.jsonl", make_prompts(concept)))
    assert wanted == make_prompts(concept)
    taught = [p for p in wanted if p.kind == "concept"]
    others = [p for p in wanted if p.kind == "other"]
    assert len(taught) == len(others) == 8
    for prompt in taught:
        assert word in prompt.prompt.split()
        assert prompt.score_text.replace("solid ", "") == prompt.prompt
    seen = {shape_world.scene_caption(scene) for scene in concept.scenes(CONCEPT_IMAGES, seed=1)}
    seen |= {
        shape_world.scene_caption(scene) for scene in regularization_scenes(REGULARIZATION_IMAGES, seed=1)
    }
    assert len(seen & {p.prompt for p in wanted}) <= 1  # fresh but for chance
    for prompt in others:
        assert word not in prompt.prompt.split()


def test_every_scene_can_be_seen():
    for scene in DemoConcept("neon").scenes(50, seed=9) + regularization_scenes(50, seed=9):
        ink, paper = (np.array(shape_world.COLOURS[c]) for c in (scene.colour, scene.background))
        assert np.linalg.norm(ink - paper) >= 115


def test_an_unknown_concept_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match="striped, neon, star, moon"):
        DemoConcept("plaid")
