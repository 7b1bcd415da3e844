"""The tokenizer gives the same ids in every library, and each word of the shape world is one token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorakit.quickstart import shape_world
from tests.pretraining import tokenizer as tokens

CAPTIONS = [
    "a large striped red heart on a blue background at the left",
    "A sks Photo, of my horse's barn 12!",
    "naïve — 漢字",
    "",
]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return tokens.build_tokenizer()


def test_every_word_of_the_world_is_one_token(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for word in tokens.world_words():
        assert len(tokenizer(word).input_ids) == 3, word


def test_full_captions_with_fillers_fit_the_context(tokenizer) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    scenes = [shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES) for _ in range(200)]
    captions = [
        shape_world.random_caption(rng, scene, keep=shape_world.ATTRIBUTES, filler_rate=1.0)
        for scene in scenes
    ]
    assert max(len(ids) for ids in tokenizer(captions).input_ids) <= tokens.CONTEXT_LENGTH


def test_the_end_token_has_the_highest_id_and_is_the_padding(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1


def test_open_clip_and_transformers_agree_on_a_saved_folder(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    open_clip = pytest.importorskip("open_clip")
    from transformers import AutoTokenizer

    from lorakit.core import storage
    from tests.pretraining import clip

    tokens.save_tokenizer(tokenizer, tmp_path)
    storage.write_json(tmp_path / "open_clip_config.json", clip.clip_config(len(tokenizer)))
    padding = {"padding": "max_length", "max_length": tokens.CONTEXT_LENGTH, "truncation": True}
    expected = tokenizer(CAPTIONS, **padding).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path)(CAPTIONS, **padding).input_ids == expected
    assert open_clip.get_tokenizer(f"local-dir:{tmp_path}")(CAPTIONS).tolist() == expected


def test_unknown_words_are_split_and_decoded_again(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer("zebra xylophone").input_ids
    assert len(ids) > 4
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["zebra", "xylophone"]
