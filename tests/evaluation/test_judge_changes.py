"""Judges whose weights or settings differ between two evaluations are named, and not compared."""

from __future__ import annotations

from typing import Any

import pytest

from lorakit.core.errors import DataError
from lorakit.evaluation.judge_changes import check_same_judges, weight_changes, without_changed_metrics
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

CLIP = {"model": "ViT-L-14", "revision": "18d0", "weights_sha256": "a" * 64, "resize": "pad"}
VQA = {"model": "some/vlm", "weights_sha256": "c" * 64}


def evaluation(**settings: Any) -> Evaluation:
    return Evaluation("e", [], [], settings=settings)


@pytest.mark.parametrize(
    ("change", "names_hash"),
    [
        ({"weights_sha256": "b" * 64}, True),
        ({"revision": "ffff"}, True),
        ({"weights_sha256": None}, False),  # unknown in one of them
        ({"resize": "squash"}, False),
        ({"model": "ViT-B-32", "weights_sha256": "b" * 64}, False),  # another model, by choice
        ({"texts_by_sentence": ["a"]}, False),
        ({}, False),
    ],
)
def test_other_weights_under_the_same_name_are_reported(change, names_hash):
    sentences = weight_changes({"clip_model": CLIP, "max_drift": None}, {"clip_model": CLIP | change})
    assert bool(sentences) == names_hash
    if names_hash:
        assert "clip_model (ViT-L-14)" in sentences[0]
        assert "→" in sentences[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "b" * 64}, "weights of clip_model"),
        ({"resize": "squash"}, "different settings of clip_model: resize"),
    ],
)
def test_evaluations_by_different_clips_are_not_compared(change, message):
    with pytest.raises(DataError, match=message):
        check_same_judges(evaluation(clip_model=CLIP), evaluation(clip_model=CLIP | change))
    check_same_judges(
        evaluation(clip_model=CLIP, image_encoder=None),
        evaluation(clip_model=CLIP | {"truncated_texts": ["a long text"]}),
    )


def test_a_metric_of_another_model_is_left_out_with_a_note():
    scores = {name: {SampleKey("p", 0): 0.5} for name in ("clip_t", "vqascore", "face_identity")}
    variants = [VariantScores("one", scores=dict(scores)), VariantScores("two", scores=dict(scores))]
    first = evaluation(vqascore=VQA, face_model={"weights_sha256": "1"})
    second = evaluation(vqascore=VQA | {"model": "other/vlm"}, face_model={"weights_sha256": "1"})
    kept, notes = without_changed_metrics(first, second, variants)
    assert [sorted(one.scores) for one in kept] == [["clip_t", "face_identity"]] * 2
    assert len(notes) == 1
    assert "VQAScore is left out" in notes[0]
    assert without_changed_metrics(first, first, variants) == (variants, [])
