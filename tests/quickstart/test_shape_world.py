"""The shape world is deterministic, its captions match its images, and held-out concepts are excluded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lorakit.quickstart import shape_world
from lorakit.quickstart.shape_world import Scene


def foreground_mask(scene: Scene) -> np.ndarray:
    """Pixels nearer to the shape's colour than to the background's."""
    image = np.asarray(shape_world.render_scene(scene), np.float32)
    foreground, background = (
        np.array(shape_world.COLOURS[name], np.float32) for name in (scene.colour, scene.background)
    )
    return np.linalg.norm(image - foreground, axis=-1) < np.linalg.norm(image - background, axis=-1)


def test_equal_seeds_give_equal_scenes_and_bytes() -> None:
    first, again, other = (shape_world.random_scene(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert (
        shape_world.render_scene(first).tobytes()
        == shape_world.render_scene(again).tobytes()
        != shape_world.render_scene(other).tobytes()
    )


def test_a_scene_is_rendered_the_same_in_a_batch_and_alone() -> None:
    rng = np.random.default_rng(0)
    scenes = [shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES) for _ in range(40)]
    alone = np.stack([np.asarray(shape_world.render_scene(scene)) for scene in scenes])
    assert np.array_equal(shape_world.render_scenes(scenes), alone)


def test_no_two_scenes_of_the_world_have_equal_images() -> None:
    scenes = shape_world.all_scenes()[::29]
    images = shape_world.render_scenes(scenes)
    assert len({image.tobytes() for image in images}) == len(scenes)


def test_base_scenes_hold_no_held_out_concept() -> None:
    rng = np.random.default_rng(1)
    scenes = [shape_world.random_scene(rng) for _ in range(300)]
    assert not {s.shape for s in scenes} & set(shape_world.HELD_OUT_SHAPES)
    assert not {s.style for s in scenes} & set(shape_world.HELD_OUT_STYLES)
    assert {s.shape for s in scenes} == set(shape_world.BASE_SHAPES)


def test_about_one_composition_in_twenty_is_held_out_whatever_its_jitter() -> None:
    scenes = shape_world.all_scenes()
    assert 0.04 < np.mean([shape_world.is_held_out(scene) for scene in scenes]) < 0.06
    rng = np.random.default_rng(2)
    assert all(
        shape_world.is_held_out(shape_world.jitter_scene(rng, scene)) == shape_world.is_held_out(scene)
        for scene in scenes[:200]
    )


@pytest.mark.parametrize("shape", shape_world.SHAPES)
def test_a_shape_is_at_the_position_in_its_caption(shape: str) -> None:
    for position, (dx, dy) in shape_world.POSITIONS.items():
        rows, columns = np.nonzero(foreground_mask(Scene(shape, "red", "white", position=position)))
        assert abs((columns.min() + columns.max()) / 2 - 31.5 - dx) < 4
        assert abs((rows.min() + rows.max()) / 2 - 31.5 - dy) < 4


def test_larger_sizes_cover_more_of_the_image() -> None:
    areas = [foreground_mask(Scene("heart", "red", "white", size=size)).sum() for size in shape_world.SIZES]
    assert areas[0] * 1.2 < areas[1]
    assert areas[1] * 1.2 < areas[2]


def test_styles_cut_the_solid_shape() -> None:
    solid = Scene("square", "blue", "yellow", size="large")
    whole = foreground_mask(solid)
    for style in ("outlined", "dotted", "striped"):
        cut = foreground_mask(replace(solid, style=style))
        assert not (cut & ~whole).any()
        assert 0.2 < cut.sum() / whole.sum() < 0.9


def test_edges_are_anti_aliased_and_image_sizes_agree() -> None:
    scene = Scene("circle", "blue", "white")
    values = np.unique(np.asarray(shape_world.render_scene(scene))[..., 0])
    assert len(values) > 8  # more than the two colours
    small, large = (
        np.asarray(shape_world.render_scene(scene, size).resize((32, 32)), np.float32) for size in (64, 128)
    )
    assert np.abs(small - large).mean() < 3


def test_captions_describe_the_scene() -> None:
    scene = Scene("heart", "red", "blue", "striped", "large", "left")
    assert shape_world.scene_caption(scene) == "a large striped red heart on a blue background at the left"
    assert shape_world.scene_caption(
        scene, omit=("size", "background"), replace_words={"striped": shape_world.TRIGGER}
    ) == ("a sks red heart at the left")
    orange = Scene("ring", "orange", "white")
    assert (
        shape_world.scene_caption(orange, omit=("size",))
        == "an orange ring on a white background in the centre"
    )
    assert (
        shape_world.scene_caption(orange, omit=("size", "background", "position"), include_solid=True)
        == "a solid orange ring"
    )


def test_random_captions_omit_words_but_never_the_kept_ones() -> None:
    rng = np.random.default_rng(5)
    scene = Scene("ring", "pink", "green", "dotted", "small", "top")
    captions = [shape_world.random_caption(rng, scene, keep=("shape",)) for _ in range(300)]
    assert all("ring" in caption.split() for caption in captions)
    words = [set(caption.split()) for caption in captions]
    for word in ("small", "green", "top"):
        assert 0.5 < np.mean([word in caption_words for caption_words in words]) < 0.95
    assert 2 < sum(shape_world.TRIGGER in caption_words for caption_words in words) < 60
