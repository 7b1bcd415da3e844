"""Over-cooked images are beyond both the base model's and the training images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from lorakit.evaluation.alarms.overcooked import overcooked
from lorakit.evaluation.metrics.image_statistics import STATISTICS, image_statistics
from lorakit.evaluation.score_table import Evaluation
from tests.evaluation.simulated import Truth, simulate

BASE, REFERENCES = np.array([0.3, -1.6, -3.5]), np.array([0.4, -1.5, -3.3])
SPREAD = np.array([0.08, 0.2, 0.3])


def evaluation(
    shift: dict[str, float], *, references: int = 8, base: bool = True, style: float = 0.0, seed: int = 0
) -> Evaluation:
    """An adapter whose statistics differ from the references' by `shift`, in standard deviations."""
    rng = np.random.default_rng(seed)
    one = simulate([Truth(100, 0.8, 1.0)], seed=seed)
    style_shift = np.array([style, 0, 0]) * SPREAD
    moved = np.array([shift.get(name, 0.0) for name in STATISTICS]) * SPREAD
    for variant in one.variants:
        center = BASE if variant is one.base else REFERENCES + style_shift + moved
        scenes = {prompt.id: 0.7 * SPREAD * rng.normal(size=3) for prompt in one.prompts}
        variant.image_statistics = {
            key: (center + scenes[key.prompt_id] + 0.7 * SPREAD * rng.normal(size=3)).tolist()
            for key in variant.files
        }
    rows = REFERENCES + style_shift + SPREAD * rng.normal(size=(references, 3))
    one.reference_statistics = rows.tolist()
    if not base:
        one.variants = one.variants[1:]
    return one


def alarm_of(one: Evaluation):
    return overcooked(one, one.adapter_variants[0])


@pytest.mark.parametrize(
    ("name", "shift", "words"),
    [
        ("saturation", 4.0, "more saturated"),
        ("contrast", 4.0, "higher in contrast"),
        ("detail", 4.0, "grainier or more sharpened"),
        ("saturation", -6.0, "paler"),
        ("detail", -6.0, "blurrier"),
    ],
)
def test_what_is_far_beyond_base_and_references_is_an_alarm_with_its_words(name, shift, words):
    alarm = alarm_of(evaluation({name: shift}))
    assert alarm.level == "alarm"
    assert words in alarm.message
    assert alarm.value.mean > 1.5
    assert alarm.examples


@pytest.mark.parametrize("references", [3, 5, 20])
def test_sound_images_raise_no_alarm(references):
    found = [alarm_of(evaluation({}, references=references, seed=seed)) for seed in range(60)]
    assert not any(alarm and alarm.level == "alarm" for alarm in found)
    assert np.mean([alarm is not None for alarm in found]) <= 0.05


def test_a_style_that_is_loud_in_the_training_images_is_no_fault():
    assert alarm_of(evaluation({}, style=5.0)) is None


def test_without_references_the_base_model_alone_is_only_reason_for_a_warning():
    one = evaluation({"contrast": 4.0})
    one.reference_statistics = []
    assert alarm_of(one).level == "warning"
    assert "training images" not in alarm_of(one).message
    assert alarm_of(evaluation({"contrast": 4.0}, base=False)).level == "warning"


def test_the_statistics_follow_what_they_are_named_for():
    rng = np.random.default_rng(0)
    colors = Image.fromarray(rng.integers(60, 200, (9, 9, 3), dtype=np.uint8))
    image = colors.resize((300, 200), Image.Resampling.BICUBIC)
    changes = {
        "saturation": ImageEnhance.Color(image).enhance(1.5),
        "contrast": ImageEnhance.Contrast(image).enhance(1.4),
        "detail": image.filter(ImageFilter.UnsharpMask(2, 200, 0)),
    }
    before = dict(zip(STATISTICS, image_statistics(image), strict=True))
    for name, changed in changes.items():
        after = dict(zip(STATISTICS, image_statistics(changed), strict=True))
        assert after[name] > before[name] + 0.05
    gray = image_statistics(image.convert("L"))
    assert gray[0] == 0
    grain = Image.fromarray(rng.integers(0, 255, (200, 300, 3), dtype=np.uint8))
    assert image_statistics(grain.filter(ImageFilter.GaussianBlur(5)))[2] < image_statistics(grain)[2] - 0.5
    assert np.isfinite(image_statistics(Image.new("RGB", (1, 1)))).all()
