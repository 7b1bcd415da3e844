"""Measures by models that the user names, from images to scores.json: mask, face, questions, long prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from lorakit.core import storage
from lorakit.data.prompts import Prompt
from lorakit.data.questions import Question
from lorakit.evaluation.feature_cache import FrameSource, frame_source
from lorakit.evaluation.judge_notes import long_prompt_notes
from lorakit.evaluation.measure import score_variants
from lorakit.evaluation.metrics import face_identity
from lorakit.evaluation.metrics.face_identity import FaceEncoder
from lorakit.evaluation.metrics.questions import QuestionScorer
from lorakit.evaluation.metrics.subject_mask import cut_out, load_mask_model
from lorakit.evaluation.sample_files import SampleFile, SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation
from lorakit.evaluation.scoring_inputs import JudgeModels, ReferenceImages, VariantSamples
from lorakit.imaging.faces import Face
from tests.tiny.onnx_files import mean_color_model, redness_model

QUESTIONS = (Question("Is it red?"), Question("Is it blue?", "no"))
PROMPTS = [
    Prompt("s", "a sks toy in a room", "a toy in a room", seeds=(0, 1), questions=QUESTIONS),
    Prompt("u", "a field", "a field", seeds=(0, 1), kind="unrelated"),
]


class PixelClip:
    """A CLIP whose features are the pixels of a small copy; of texts a constant."""

    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        arrays = [np.asarray(image.resize((8, 8)), np.float32).reshape(-1) / 255 for image in images]
        return torch.nn.functional.normalize(torch.tensor(np.array(arrays)), dim=-1)

    def text_features(self, texts: list[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.ones(len(texts), 192), dim=-1)

    def describe(self) -> dict[str, Any]:
        return {"model": "pixels"}


class RedModel:
    """Answers by the mean red of an image."""

    def yes_probability(self, image: Image.Image, question: str) -> float:
        raise AssertionError

    def answer_probabilities(self, image: Image.Image, question: str) -> dict[Any, float]:
        red = float(np.asarray(image)[..., 0].mean()) / 255
        yes = red if "red" in question else 1 - red
        return {"yes": yes, "no": 1 - yes}

    def describe(self) -> dict[str, Any]:
        return {"model": "red"}


def toy(background: str, *, at: int = 20, color: str = "red") -> Image.Image:
    image = Image.new("RGB", (96, 96), background)
    ImageDraw.Draw(image).rectangle((at, at, at + 40, at + 40), fill=color)
    return image


def detect(image: Image.Image) -> list[Face]:
    """A face is what is red in the middle."""
    return [Face((30, 30, 50, 50))] if image.getpixel((40, 40))[0] > 200 else []


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Subjects of the adapter are red in other rooms, those of the base model are blue or absent."""
    root = tmp_path_factory.mktemp("subjects")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORAKIT_CACHE", str(root / "cache"))
    patch.setattr(face_identity, "load_face_detector", lambda file, where: detect)
    variants = [
        variant(root, BASE, [toy("navy", color="blue"), toy("navy", color="navy")]),
        variant(root, "step-10", [toy("navy", at=24), toy("navy", at=30, color="blue")]),
    ]
    references = [storage.save_image(root / f"ref-{n}.png", toy("gray", at=10 + 10 * n)) for n in range(3)]
    sources = [frame_source(file) for file in references]
    masked = toy("white")  # a mask in the dataset goes before the model's
    own = FrameSource("masked", lambda: [cut_out(masked, np.asarray(masked)[..., 1] < 100)])
    judges = JudgeModels(
        PixelClip(),  # type: ignore[arg-type]
        prompt_scorers=[QuestionScorer(RedModel())],
        mask_model=load_mask_model(str(redness_model(root / "red.onnx")), "cpu"),
        face_encoder=FaceEncoder(str(mean_color_model(root / "faces.onnx"))),
        win_rates=["questions"],
    )
    images = ReferenceImages(
        [file.name for file in references], sources, [True, False, False], cut_outs={1: own}
    )
    evaluation = Evaluation("e", PROMPTS, [], triggers=("sks",))
    score_variants(evaluation, variants, judges, images, root=root, quiet=True)
    patch.undo()
    return evaluation


def variant(root: Path, name: str, subjects: list[Image.Image]) -> VariantSamples:
    samples = []
    for prompt, images in zip(PROMPTS, (subjects, [Image.new("RGB", (96, 96), "green")] * 2), strict=True):
        for seed, image in enumerate(images):
            file = storage.save_image(root / name / f"{prompt.id}-{seed}.png", image)
            samples.append(SampleFile(prompt, seed, file))
    return VariantSamples(name, samples, None if name == BASE else 10)


def test_fidelity_is_that_of_the_masked_subject(evaluation):
    assert evaluation.fidelity_metric == "masked_i"
    one = evaluation.variants[1]
    scores = one.scores["masked_i"]
    assert scores[SampleKey("s", 0)] > 0.97  # the same subject in another room and place
    assert one.scores["clip_i"][SampleKey("s", 0)] < 0.9
    units = evaluation.prompt_units(PROMPTS[0])
    row = np.array(one.reference_similarity[SampleKey("s", 0)])
    assert row[units].mean() == pytest.approx(scores[SampleKey("s", 0)])
    assert evaluation.references is not None
    assert evaluation.references.similarity.min() > 0.97  # the references' own masks and those of the model


def test_images_in_which_the_subject_is_not_detected_are_counted_and_measured_whole(evaluation):
    base = evaluation.variants[0]
    assert base.scores["masked_i"][SampleKey("s", 1)] < 0.9
    notes = [note for note in evaluation.notes if "no subject was detected" in note]
    assert any(note.startswith("base: ") and "2 images (s-0.png, s-1.png)" in note for note in notes)
    assert any(note.startswith("step-10: ") and "1 image (s-1.png)" in note for note in notes)
    assert all("u-0.png" not in note for note in notes)  # prompts without the subject


def test_faces_are_compared_with_reference_faces_and_missing_ones_are_named(evaluation):
    base, one = evaluation.variants
    assert "face_identity" not in base.scores
    assert one.scores["face_identity"] == {SampleKey("s", 0): pytest.approx(1.0, abs=0.02)}
    assert any("step-10: no face was detected in 1 image (s-1.png)" in note for note in evaluation.notes)
    assert evaluation.settings["face_model"]["model"] == "faces.onnx"


def test_questions_give_a_score_for_each_and_one_for_the_image(evaluation):
    one = evaluation.variants[1]
    parts = one.question_scores[SampleKey("s", 0)]
    assert len(parts) == 2
    assert one.scores["questions"][SampleKey("s", 0)] == pytest.approx((parts[0] * parts[1]) ** 0.5)
    assert SampleKey("u", 0) not in one.question_scores  # a prompt without questions
    assert SampleKey("u", 0) not in one.scores["questions"]


def test_everything_survives_scores_json(evaluation):
    again = Evaluation.from_json(json.loads(storage.dump_json(evaluation.to_json())))
    assert again.prompts[0].questions == QUESTIONS
    for before, after in zip(evaluation.variants, again.variants, strict=True):
        assert after.question_scores == before.question_scores
        assert after.scores == {name: values for name, values in before.scores.items() if values}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({"texts_by_sentence": [], "truncated_texts": []}, []),
        (
            {"texts_by_sentence": ["a field"]},
            ["1 of 2 prompts is longer than CLIP reads; it is scored by sentence."],
        ),
        (
            {"texts_by_sentence": ["a field", "a toy in a room"], "truncated_texts": ["a toy"]},
            [
                "2 of 2 prompts are longer than CLIP reads; they are scored by sentence.",
                "1 of 2 prompts has a sentence of which CLIP reads only the beginning.",
            ],
        ),
    ],
)
def test_long_prompts_are_counted(description, expected):
    assert long_prompt_notes(description, PROMPTS) == expected
