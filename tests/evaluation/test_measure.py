"""Scores of real pictures by the embedded CLIP, each against what the definitions give by hand."""

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
from lorakit.evaluation.measure import JudgeModels, VariantSamples, score_variants
from lorakit.evaluation.metrics.extra_metrics import ClipScore
from lorakit.evaluation.sample_files import SampleFile, find_samples
from lorakit.evaluation.score_table import BASE, Evaluation
from lorakit.imaging import video
from lorakit.models import base_model, clip_score
from lorakit.quickstart import shape_world
from lorakit.sampling import generate

SEEDS = (0, 1)


def scene(shape: str, colour: str, seed: int, style: str = "solid") -> Image.Image:
    made = shape_world.Scene(shape, colour, "white", style)
    return shape_world.render_scene(shape_world.jitter_scene(np.random.default_rng(seed), made))


PROMPTS = [
    Prompt("s1", "a sks red circle", "a red circle", seeds=SEEDS, kind="view"),
    Prompt("s2", "a sks blue heart", "a blue heart", seeds=SEEDS, kind="style"),
    Prompt("o1", "a green ring", "a green ring", seeds=SEEDS, kind="unrelated"),
]
LOOKS = {"s1": ("circle", "red"), "s2": ("heart", "blue"), "o1": ("ring", "green")}


def arm(folder: Path, name: str, style: str) -> VariantSamples:
    pictures = []
    for prompt in PROMPTS:
        for seed in prompt.seeds:
            image = scene(*LOOKS[prompt.id], seed, style)
            path = storage.save_image(folder / name / f"{prompt.id}-{seed}.png", image)
            pictures.append(SampleFile(prompt, seed, path))
    return VariantSamples(name, pictures, None if name == BASE else 100)


@pytest.fixture(scope="module")
def clip() -> clip_score.ClipScorer:
    return clip_score.ClipScorer.local(base_model.EMBEDDED_CLIP)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("measure")


@pytest.fixture(scope="module")
def references(place):
    for number, shape in enumerate(("circle", "square", "cross", "triangle")):
        storage.save_image(place / "data" / f"{number}.png", scene(shape, "red", number, "striped"))
    found = load_folder_references(place / "data", place)
    return replace(found, trained=[True, True, True, False])


@pytest.fixture(scope="module")
def made(place, clip, references) -> Evaluation:
    evaluation = Evaluation("e", PROMPTS, [], trigger="sks")
    arms = [arm(place, "step 100", "striped"), arm(place, BASE, "solid")]
    alternatives = {"s1": ["a red circle", "a striped red circle"]}
    return score_variants(
        evaluation, arms, JudgeModels(clip), references, root=place, alternatives=alternatives
    )


def seen(clip: clip_score.ClipScorer, evaluation: Evaluation, name: str, place: Path) -> np.ndarray:
    """Features of an arm by open_clip alone, in the order of its files."""
    found = next(one for one in evaluation.arms if one.name == name)
    images = [Image.open(place / file).convert("RGB") for file in found.files.values()]
    return clip.image_features(images).double().numpy()


def test_the_base_comes_first_and_paths_are_relative(made):
    assert [one.name for one in made.arms] == [BASE, "step 100"]
    assert made.arms[1].files["s1", 0] == "step 100/s1-0.png"
    assert made.eye == "clip_i"


def test_clip_t_and_shuffled_texts(made, clip, place):
    pictures = seen(clip, made, "step 100", place)
    texts = clip.text_features([p.score_text for p in PROMPTS]).double().numpy()
    similarity = pictures @ texts.T
    arm = made.arms[1]
    keys = list(arm.files)
    expected = clip.clip_t(
        [Image.open(place / f).convert("RGB") for f in arm.files.values()],
        [next(p for p in PROMPTS if p.id == key[0]).score_text for key in keys],
    )
    assert [arm.scores["clip_t"][key] for key in keys] == pytest.approx(expected, abs=1e-6)
    # s1 and s2 are each other's other text; o1 is the only one of its role and has none
    row = keys.index(("s1", 1))
    assert arm.scores["shuffled"]["s1", 1] == pytest.approx(similarity[row, 1], abs=1e-6)
    assert ("o1", 0) not in arm.scores["shuffled"]


def test_fidelity_drift_and_diversity(made, clip, place, references):
    adapted, base = seen(clip, made, "step 100", place), seen(clip, made, BASE, place)
    images = [image for one in references.sources for image in one.open()]
    subject = clip.image_features(images).double().numpy()
    arm = made.arms[1]
    for row, key in enumerate(arm.files):
        assert arm.scores["clip_i"][key] == pytest.approx((adapted[row] @ subject.T).mean(), abs=1e-6)
        assert arm.scores["drift"][key] == pytest.approx(1 - adapted[row] @ base[row], abs=1e-6)
    assert arm.by_prompt["diversity"]["s2"] == pytest.approx(1 - adapted[2] @ adapted[3], abs=1e-6)
    assert "drift" not in made.arms[0].scores
    others = (subject @ subject.T - np.eye(4)).sum(1) / 3
    assert made.ceiling == pytest.approx(others, abs=1e-6)


def test_lookalikes_are_images_that_were_trained_on(made, clip, place, references):
    adapted = seen(clip, made, "step 100", place)
    images = [image for one in references.sources[:3] for image in one.open()]
    trained = clip.image_features(images).double().numpy()
    arm = made.arms[1]
    for row, key in enumerate(arm.files):
        assert arm.scores["nearest"][key] == pytest.approx((adapted[row] @ trained.T).max(), abs=1e-6)
        assert arm.lookalikes[key] == f"{int((adapted[row] @ trained.T).argmax())}.png"
    assert arm.lookalikes["s1", 0] == "0.png"
    assert made.training == "data"


def test_the_choice_among_alternatives(made):
    arm = made.arms[1]
    assert set(arm.choices) == {("s1", 0), ("s1", 1)}
    assert arm.choices["s1", 0] == "a striped red circle"  # which it is, though the prompt asked for less
    assert arm.scores["right"]["s1", 0] == 0.0
    assert made.base.scores["right"]["s1", 0] == 1.0


def test_an_image_model_and_a_copy_detector_take_over_what_is_theirs(place, clip, references, tmp_path):
    """Fidelity, drift and nearness by the image model, copies by the detector, CLIP-T by CLIP."""

    class Pixels:
        """Looks at a picture as so many pixels."""

        def __init__(self, side: int) -> None:
            self.side = side

        def image_features(self, images):
            small = [np.asarray(i.convert("RGB").resize((self.side, self.side)), np.float32) for i in images]
            return F.normalize(torch.from_numpy(np.stack(small)).flatten(1) - 100, dim=-1)

        def describe(self):
            return {"model": f"{self.side} pixels"}

    eye, detector = Pixels(4), Pixels(9)
    arms = [arm(place, "step 100", "striped"), arm(place, BASE, "solid")]
    made = score_variants(
        Evaluation("e", PROMPTS, [], trigger="sks"),
        arms,
        JudgeModels(clip, eye, detector),
        references,
        root=place,
    )
    assert made.eye == "dino_i"
    adapted = made.arms[1]

    def looked(by: Pixels, files) -> np.ndarray:
        return by.image_features([Image.open(place / file) for file in files]).double().numpy()

    data = [f"data/{name}" for name in references.names]
    seen, base = (looked(eye, one.files.values()) for one in (adapted, made.base))
    subject = looked(eye, data)
    copied = looked(detector, adapted.files.values()) @ looked(detector, data[:3]).T
    for row, key in enumerate(adapted.files):
        assert adapted.scores["dino_i"][key] == pytest.approx((seen[row] @ subject.T).mean(), abs=1e-5)
        assert adapted.scores["drift"][key] == pytest.approx(1 - seen[row] @ base[row], abs=1e-5)
        assert adapted.scores["nearest"][key] == pytest.approx((seen[row] @ subject[:3].T).max(), abs=1e-5)
        assert adapted.scores["sscd"][key] == pytest.approx(copied[row].max(), abs=1e-5)
    assert made.settings["image model"] == {"model": "4 pixels"}
    assert made.settings["copy detector"] == {"model": "9 pixels"}


def test_means_weigh_prompts_not_pictures(made):
    arm = made.arms[1]
    expected = [np.mean([arm.scores["clip_t"][p.id, s] for s in SEEDS]) for p in PROMPTS]
    assert made.column(arm, "clip_t", PROMPTS) == pytest.approx(expected)
    assert made.interval(arm, "clip_t", PROMPTS).mean == pytest.approx(np.mean(expected))
    assert made.interval(arm, "vqascore", PROMPTS) is None


def test_it_is_the_same_after_json(made, place):
    storage.write_json(place / score_table.SCORES_FILE, made.to_json())
    root, again = score_table.load_evaluation(place)
    assert root == place
    assert again.to_json() == made.to_json()
    assert [p.role("sks") for p in again.prompts] == ["subject", "subject", "unrelated"]


def test_a_clip_is_scored_by_its_frames_not_by_its_strip(clip, tmp_path):
    """CLIP-T, and what else is measured, is the mean over the frames; equal clips do not drift."""
    prompt = replace(PROMPTS[0], seeds=(0, 1))
    films = [
        [scene("circle", "red", 1), scene("ring", "blue", 2), scene("circle", "red", 3)],
        [scene("circle", "red", 4), scene("circle", "red", 5)],
    ]
    shots = [Sample(prompt, n, video.frame_strip(film), tuple(film)) for n, film in enumerate(films)]
    for name in (BASE, "same"):
        generate.save_samples(tmp_path / name, shots, 16.0)
    arms = [VariantSamples(name, find_samples(tmp_path / name, [prompt])) for name in (BASE, "same")]
    judges = JudgeModels(clip, extras=[ClipScore(clip)])
    made = score_variants(Evaluation("e", [prompt], []), arms, judges, None, root=tmp_path)
    scores = made.arms[1].scores
    for n, film in enumerate(films):
        expected = np.mean(clip.clip_t(film, [prompt.score_text] * len(film)))
        assert scores["clip_t"]["s1", n] == pytest.approx(expected, abs=1e-6)
        each = np.mean(ClipScore(clip).score(film, [prompt] * len(film)))
        assert scores["clipscore"]["s1", n] == pytest.approx(each, abs=1e-6)
        assert scores["drift"]["s1", n] == pytest.approx(0, abs=1e-6)
        assert made.arms[1].files["s1", n] == f"same/s1-{n}.png"  # what the report shows


def test_an_arm_that_lacks_a_picture_is_not_compared(place, clip):
    arms = [arm(place, BASE, "solid"), arm(place, "step 100", "solid")]
    arms[1].pictures.pop()
    with pytest.raises(DataError, match="missing pictures: o1 seed 1"):
        score_variants(Evaluation("e", PROMPTS, []), arms, JudgeModels(clip), None, root=place)


def test_features_are_computed_once_and_by_content(place, clip, tmp_path):
    class Counting:
        looked = 0

        def image_features(self, images):
            self.looked += len(images)
            return clip.image_features(images)

        def describe(self):
            return clip.describe()

    eye, file = Counting(), storage.save_image(tmp_path / "a.png", scene("ring", "pink", 5))
    other = FrameSource("another picture", lambda: [scene("ring", "blue", 6)])
    first = cached_features(eye, [frame_source(file), other], "x")
    assert eye.looked == 2
    assert (cached_features(eye, [frame_source(file), other], "x") == first).all()
    assert eye.looked == 2
    storage.save_image(file, scene("ring", "green", 5))
    assert not np.allclose(cached_features(eye, [frame_source(file), other], "x")[0], first[0])
    assert eye.looked == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "another version"), ('{"format": 1}', "not an evaluation"), ("[1]", "another version")],
)
def test_a_file_that_is_no_evaluation_is_refused(tmp_path, text, said):
    (tmp_path / score_table.SCORES_FILE).write_text(text)
    with pytest.raises(DataError, match=said):
        score_table.load_evaluation(tmp_path)
    with pytest.raises(DataError, match="lorakit eval"):
        score_table.load_evaluation(tmp_path / "nowhere")
