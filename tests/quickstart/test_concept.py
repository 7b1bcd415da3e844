"""The quickstart's dataset is untidy in the documented ways, and its prompts match their score texts."""

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


def test_images_with_exif_rotation_are_decoded_upright(folder):
    scenes = DemoConcept("striped").scenes(CONCEPT_IMAGES, seed=1)
    for index in (3, 8, 13):
        with Image.open(folder / f"{index:02d}.jpg") as stored:
            assert stored.getexif()[0x0112] != 1
        decoded = np.asarray(decode.decode_image(folder / f"{index:02d}.jpg"), np.int16)
        rendered = np.asarray(shape_world.render_scene(scenes[index], decoded.shape[0]), np.int16)
        assert np.abs(decoded - rendered).mean() < 4  # JPEG


def test_the_colour_under_transparency_is_not_visible(folder):
    with Image.open(folder / "05.png") as stored:
        assert stored.mode == "RGBA"
        assert (np.asarray(stored)[0, 0] == (255, 0, 255, 0)).all()
    pixels = np.asarray(decode.decode_image(folder / "05.png"), np.int16)
    assert not ((pixels[..., 0] > 200) & (pixels[..., 1] < 100) & (pixels[..., 2] > 200)).any()


def test_prepare_keeps_all_images_but_the_truncated_one(folder):
    result = prepare_dataset(
        folder, PrepareOptions(resolution=64, batch_size=16, bucket_mode="square", trigger="sks", quiet=True)
    )
    assert len(result.kept) == CONCEPT_IMAGES + REGULARIZATION_IMAGES
    (broken,) = [record for record in result.records if not record.keep]
    assert broken.file == "broken.jpg"
    assert broken.reason.startswith("truncated")
    subject = [record for record in result.kept if "striped" in record.caption.split()]
    assert len(subject) == CONCEPT_IMAGES


@pytest.mark.parametrize("word", CONCEPTS)
def test_prompts_are_new_and_their_score_text_is_what_they_ask_for(word, tmp_path):
    concept = DemoConcept(word)
    loaded = prompts.load_prompts(write_prompt_file(tmp_path / "p.jsonl", make_prompts(concept)))
    assert loaded == make_prompts(concept)
    subject = [p for p in loaded if p.kind == "subject"]
    unrelated = [p for p in loaded if p.kind == "unrelated"]
    assert (len(subject), len(unrelated)) == (16, 8)
    for prompt in subject:
        assert word in prompt.prompt.split()
        assert prompt.score_text.replace("solid ", "") == prompt.prompt
    captions = {shape_world.scene_caption(scene) for scene in concept.scenes(CONCEPT_IMAGES, seed=1)}
    captions |= {
        shape_world.scene_caption(scene) for scene in regularization_scenes(REGULARIZATION_IMAGES, seed=1)
    }
    assert not captions & {p.prompt for p in loaded}
    for prompt in unrelated:
        assert word not in prompt.prompt.split()


def test_shape_and_background_contrast_in_every_scene():
    for scene in DemoConcept("neon").scenes(50, seed=9) + regularization_scenes(50, seed=9):
        foreground, background = (np.array(shape_world.COLOURS[c]) for c in (scene.colour, scene.background))
        assert np.linalg.norm(foreground - background) >= 115


def test_an_unknown_concept_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match="striped, neon, star, moon"):
        DemoConcept("plaid")
