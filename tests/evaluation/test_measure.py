"""Scores of rendered images by the embedded CLIP, each compared with its definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.data.prompts import Prompt, Sample
from lorakit.evaluation import score_table
from lorakit.evaluation.feature_cache import FrameSource, cached_features, frame_source
from lorakit.evaluation.judges import load_folder_references
from lorakit.evaluation.measure import score_variants
from lorakit.evaluation.metrics.extra_metrics import ClipScore
from lorakit.evaluation.sample_files import SampleFile, find_samples
from lorakit.evaluation.score_table import BASE, Evaluation
from lorakit.evaluation.scoring_inputs import JudgeModels, VariantSamples
from lorakit.imaging import video
from lorakit.models import base_model, clip_score
from lorakit.quickstart import shape_world
from lorakit.sampling import saved_samples

SEEDS = (0, 1)


def scene(shape: str, colour: str, seed: int, style: str = "solid") -> Image.Image:
    plain = shape_world.Scene(shape, colour, "white", style)
    return shape_world.render_scene(shape_world.jitter_scene(np.random.default_rng(seed), plain))


PROMPTS = [
    Prompt("s1", "a sks red circle", "a red circle", seeds=SEEDS, kind="view"),
    Prompt("s2", "a sks blue heart", "a blue heart", seeds=SEEDS, kind="style"),
    Prompt("o1", "a green ring", "a green ring", seeds=SEEDS, kind="unrelated"),
]
LOOKS = {"s1": ("circle", "red"), "s2": ("heart", "blue"), "o1": ("ring", "green")}


def make_variant(folder: Path, name: str, style: str) -> VariantSamples:
    samples = []
    for prompt in PROMPTS:
        for seed in prompt.seeds:
            image = scene(*LOOKS[prompt.id], seed, style)
            path = storage.save_image(folder / name / f"{prompt.id}-{seed}.png", image)
            samples.append(SampleFile(prompt, seed, path))
    return VariantSamples(name, samples, None if name == BASE else 100)


@pytest.fixture(scope="module")
def clip() -> clip_score.ClipScorer:
    return clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("measure")


@pytest.fixture(scope="module")
def references(place):
    for number, shape in enumerate(("circle", "square", "cross", "triangle")):
        storage.save_image(place / "data" / f"{number}.png", scene(shape, "red", number, "striped"))
    references = load_folder_references(place / "data", place)
    return replace(references, trained_on=[True, True, True, False])


@pytest.fixture(scope="module")
def evaluation(place, clip, references) -> Evaluation:
    evaluation = Evaluation("e", PROMPTS, [], triggers=("sks",))
    variants = [make_variant(place, "step-100", "striped"), make_variant(place, BASE, "solid")]
    alternatives = {"s1": ["a red circle", "a striped red circle"]}
    return score_variants(
        evaluation, variants, JudgeModels(clip), references, root=place, alternatives=alternatives
    )


def clip_features(clip: clip_score.ClipScorer, evaluation: Evaluation, name: str, place: Path) -> np.ndarray:
    """Features of a variant by open_clip alone, in the order of its files."""
    variant = next(variant for variant in evaluation.variants if variant.name == name)
    images = [Image.open(place / file).convert("RGB") for file in variant.files.values()]
    return clip.image_features(images).double().numpy()


def test_the_base_comes_first_and_paths_are_relative(evaluation):
    assert [one.name for one in evaluation.variants] == [BASE, "step-100"]
    assert evaluation.variants[1].files["s1", 0] == "step-100/s1-0.png"
    assert evaluation.fidelity_metric == "clip_i"


def test_clip_t_uses_the_own_text_and_the_shuffled_score_those_of_the_same_role(evaluation, clip, place):
    images = clip_features(clip, evaluation, "step-100", place)
    texts = clip.text_features([p.score_text for p in PROMPTS]).double().numpy()
    similarity = images @ texts.T
    variant = evaluation.variants[1]
    keys = list(variant.files)
    expected = clip.clip_t(
        [Image.open(place / f).convert("RGB") for f in variant.files.values()],
        [next(p for p in PROMPTS if p.id == key[0]).score_text for key in keys],
    )
    assert [variant.scores["clip_t"][key] for key in keys] == pytest.approx(expected, abs=1e-6)
    # s1 and s2 are each other's shuffled text; o1 is the only one of its role and has none
    row = keys.index(("s1", 1))
    assert variant.scores["clip_t_shuffled"]["s1", 1] == pytest.approx(similarity[row, 1], abs=1e-6)
    assert ("o1", 0) not in variant.scores["clip_t_shuffled"]


def test_fidelity_drift_and_diversity_are_cosines_of_features(evaluation, clip, place, references):
    adapted, base = (clip_features(clip, evaluation, name, place) for name in ("step-100", BASE))
    images = [image for one in references.sources for image in one.open()]
    subject = clip.image_features(images).double().numpy()
    variant = evaluation.variants[1]
    for row, key in enumerate(variant.files):
        assert variant.scores["clip_i"][key] == pytest.approx((adapted[row] @ subject.T).mean(), abs=1e-6)
        assert variant.scores["drift"][key] == pytest.approx(1 - adapted[row] @ base[row], abs=1e-6)
    assert variant.per_prompt["diversity"]["s2"] == pytest.approx(1 - adapted[2] @ adapted[3], abs=1e-6)
    assert "drift" not in evaluation.variants[0].scores
    assert evaluation.references is not None
    assert evaluation.references.similarity == pytest.approx(subject @ subject.T, abs=1e-6)
    for key, row in zip(variant.files, adapted @ subject.T, strict=True):
        assert variant.reference_similarity[key] == pytest.approx(row, abs=1e-6)


def test_the_nearest_training_images_are_images_that_were_trained_on(evaluation, clip, place, references):
    adapted = clip_features(clip, evaluation, "step-100", place)
    images = [image for one in references.sources[:3] for image in one.open()]
    trained = clip.image_features(images).double().numpy()
    variant = evaluation.variants[1]
    for row, key in enumerate(variant.files):
        assert variant.scores["nearest_train_similarity"][key] == pytest.approx(
            (adapted[row] @ trained.T).max(), abs=1e-6
        )
        assert variant.nearest_train_images[key] == f"{int((adapted[row] @ trained.T).argmax())}.png"
    assert variant.nearest_train_images["s1", 0] == "0.png"
    assert evaluation.train_images == "data"


def test_clip_chooses_among_the_alternatives_of_a_prompt(evaluation):
    variant = evaluation.variants[1]
    assert set(variant.clip_choices) == {("s1", 0), ("s1", 1)}
    assert variant.clip_choices["s1", 0] == "a striped red circle"
    assert variant.scores["clip_accuracy"]["s1", 0] == 0.0
    assert evaluation.base.scores["clip_accuracy"]["s1", 0] == 1.0


def test_an_image_encoder_and_a_copy_detector_replace_clip_for_their_scores(
    place, clip, references, tmp_path
):
    """Fidelity, drift and similarity by the image encoder, copies by the detector, CLIP-T by CLIP."""

    class Pixels:
        """Features that are the pixels of a small image."""

        def __init__(self, side: int) -> None:
            self.side = side

        def image_features(self, images):
            small = [np.asarray(i.convert("RGB").resize((self.side, self.side)), np.float32) for i in images]
            return F.normalize(torch.from_numpy(np.stack(small)).flatten(1) - 100, dim=-1)

        def describe(self):
            return {"model": f"{self.side} pixels"}

    image_encoder, copy_detector = Pixels(4), Pixels(9)
    variants = [make_variant(place, "step-100", "striped"), make_variant(place, BASE, "solid")]
    evaluation = score_variants(
        Evaluation("e", PROMPTS, [], triggers=("sks",)),
        variants,
        JudgeModels(clip, image_encoder, copy_detector),
        references,
        root=place,
    )
    assert evaluation.fidelity_metric == "dino_i"
    adapted = evaluation.variants[1]

    def encode(encoder: Pixels, files) -> np.ndarray:
        return encoder.image_features([Image.open(place / file) for file in files]).double().numpy()

    data = [f"data/{name}" for name in references.names]
    features, base = (encode(image_encoder, v.files.values()) for v in (adapted, evaluation.base))
    subject = encode(image_encoder, data)
    copied = encode(copy_detector, adapted.files.values()) @ encode(copy_detector, data[:3]).T
    for row, key in enumerate(adapted.files):
        assert adapted.scores["dino_i"][key] == pytest.approx((features[row] @ subject.T).mean(), abs=1e-5)
        assert adapted.scores["drift"][key] == pytest.approx(1 - features[row] @ base[row], abs=1e-5)
        assert adapted.scores["nearest_train_similarity"][key] == pytest.approx(
            (features[row] @ subject[:3].T).max(), abs=1e-5
        )
        assert adapted.scores["sscd"][key] == pytest.approx(copied[row].max(), abs=1e-5)
    assert evaluation.settings["image_encoder"] == {"model": "4 pixels"}
    assert evaluation.settings["copy_detector"] == {"model": "9 pixels"}


def test_means_weigh_prompts_equally_not_images(evaluation):
    variant = evaluation.variants[1]
    expected = [np.mean([variant.scores["clip_t"][p.id, s] for s in SEEDS]) for p in PROMPTS]
    assert evaluation.prompt_means(variant, "clip_t", PROMPTS) == pytest.approx(expected)
    assert evaluation.interval(variant, "clip_t", PROMPTS).mean == pytest.approx(np.mean(expected))
    assert evaluation.interval(variant, "vqascore", PROMPTS) is None


def test_an_evaluation_is_unchanged_by_json(evaluation, place):
    storage.write_json(place / score_table.SCORES_FILE, evaluation.to_json())
    assert score_table.find_evaluation_folder(place) == place
    again = score_table.load_evaluation(place)
    assert again.to_json() == evaluation.to_json()
    assert [p.role(["sks"]) for p in again.prompts] == ["subject", "subject", "unrelated"]


def test_a_video_is_scored_by_its_frames_not_by_its_strip(clip, tmp_path):
    """CLIP-T and the other scores are means over the frames; equal videos do not drift."""
    prompt = replace(PROMPTS[0], seeds=(0, 1))
    videos = [
        [scene("circle", "red", 1), scene("ring", "blue", 2), scene("circle", "red", 3)],
        [scene("circle", "red", 4), scene("circle", "red", 5)],
    ]
    samples = [
        Sample(prompt, n, video.frame_strip(video_frames), tuple(video_frames))
        for n, video_frames in enumerate(videos)
    ]
    for name in (BASE, "same"):
        saved_samples.save_samples(tmp_path / name, samples, 16.0)
    variants = [VariantSamples(name, find_samples(tmp_path / name, [prompt])) for name in (BASE, "same")]
    judges = JudgeModels(clip, prompt_scorers=[ClipScore(clip)])
    evaluation = score_variants(Evaluation("e", [prompt], []), variants, judges, None, root=tmp_path)
    scores = evaluation.variants[1].scores
    for n, video_frames in enumerate(videos):
        expected = np.mean(clip.clip_t(video_frames, [prompt.score_text] * len(video_frames)))
        assert scores["clip_t"]["s1", n] == pytest.approx(expected, abs=1e-6)
        each = np.mean(ClipScore(clip).score(video_frames, [prompt] * len(video_frames)))
        assert scores["clipscore"]["s1", n] == pytest.approx(each, abs=1e-6)
        assert scores["drift"]["s1", n] == pytest.approx(0, abs=1e-6)
        assert evaluation.variants[1].files["s1", n] == f"same/s1-{n}.png"  # the still image, for the report


def test_an_variant_that_lacks_a_image_is_not_compared(place, clip):
    variants = [make_variant(place, BASE, "solid"), make_variant(place, "step-100", "solid")]
    variants[1].samples.pop()
    with pytest.raises(DataError, match="missing images: o1 seed 1"):
        score_variants(Evaluation("e", PROMPTS, []), variants, JudgeModels(clip), None, root=place)


def test_features_are_computed_once_and_by_content(place, clip, tmp_path):
    class Counting:
        num_images = 0

        def image_features(self, images):
            self.num_images += len(images)
            return clip.image_features(images)

        def describe(self):
            return clip.describe()

    encoder, file = Counting(), storage.save_image(tmp_path / "a.png", scene("ring", "pink", 5))
    other = FrameSource("another image", lambda: [scene("ring", "blue", 6)])
    first = cached_features(encoder, [frame_source(file), other], "x")
    assert encoder.num_images == 2
    assert (cached_features(encoder, [frame_source(file), other], "x") == first).all()
    assert encoder.num_images == 2
    storage.save_image(file, scene("ring", "green", 5))
    assert not np.allclose(cached_features(encoder, [frame_source(file), other], "x")[0], first[0])
    assert encoder.num_images == 3  # the other image is in the cache


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "another version"), ('{"format_version": 2}', "not an evaluation"), ("[1]", "another version")],
)
def test_a_file_without_an_evaluation_is_refused(tmp_path, text, message):
    (tmp_path / score_table.SCORES_FILE).write_text(text)
    with pytest.raises(DataError, match=message):
        score_table.load_evaluation(tmp_path)
    with pytest.raises(DataError, match="lorakit eval"):
        score_table.load_evaluation(tmp_path / "nowhere")
