"""Known before sampling: the number of images within a limit, their disk, and their time once measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.evaluation import sampling_estimate
from lorakit.evaluation.checkpoints import CheckpointVariant
from lorakit.evaluation.image_budget import fit_budget
from lorakit.evaluation.sampling_estimate import SamplingMeter, describe_work, estimate_disk


def prompts(count: int, seeds: int) -> list[Prompt]:
    return [Prompt(f"p{n}", f"prompt {n}", f"prompt {n}", seeds=tuple(range(seeds))) for n in range(count)]


def variants(count: int) -> list[CheckpointVariant]:
    return [CheckpointVariant(100 * (n + 1), Path(f"{n}.safetensors")) for n in range(count)]


@pytest.mark.parametrize(
    ("max_images", "guests", "seeds", "steps"),
    [
        (10_000, 0, 4, [100, 200, 300, 400, 500]),  # 24 x 4 x 6 = 576
        (576, 0, 4, [100, 200, 300, 400, 500]),
        (575, 0, 3, [100, 200, 300, 400, 500]),
        (300, 0, 2, [100, 200, 300, 400, 500]),
        (200, 0, 2, [100, 300, 500]),
        (200, 1, 2, [100, 500]),
        (96, 0, 2, [500]),
    ],
)
def test_a_limit_leaves_out_seeds_first_and_then_checkpoints_in_even_distances(
    max_images, guests, seeds, steps
):
    budget = fit_budget(prompts(24, 4), variants(5), guests, max_images)
    assert {len(prompt.seeds) for prompt in budget.prompts} == {seeds}
    assert [variant.step for variant in budget.variants] == steps
    assert 24 * seeds * (1 + guests + len(steps)) <= max_images
    assert (budget.note is None) == (seeds == 4 and len(steps) == 5)
    if seeds < 4:
        assert f"{seeds} instead of 4 seeds" in budget.note
    if 300 not in steps:
        assert "step-300" in budget.note


@pytest.mark.parametrize(("max_images", "least"), [(95, 96), (1, 96)])
def test_a_limit_that_is_too_small_names_the_smallest(max_images, least):
    with pytest.raises(ConfigError, match=f"needs {least} images") as caught:
        fit_budget(prompts(24, 4), variants(5), 0, max_images)
    assert f"--max-images {least}" in str(caught.value)


def test_prompts_with_few_seeds_keep_them():
    mixed = [*prompts(4, 1), *[Prompt("q", "x", "x", seeds=(5, 6, 7))]]
    budget = fit_budget(mixed, variants(2), 0, 18)
    assert [prompt.seeds for prompt in budget.prompts] == [(0,)] * 4 + [(5, 6)]


def test_the_disk_is_measured_on_images_of_the_same_size(tmp_path):
    generator = np.random.default_rng(0)
    for number, side in enumerate((64, 64, 64, 128)):
        pixels = generator.integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"not an image")
    files = sorted(tmp_path.glob("*.png"))
    estimate = estimate_disk(files, 64, 64)
    assert estimate.bytes_per_image == np.mean([file.stat().st_size for file in files[:3]])
    assert "3 images of this run" in estimate.basis
    unknown = estimate_disk(files, 32, 64)
    assert unknown.bytes_per_image == 3 * 32 * 64
    assert "at most" in unknown.basis


def test_the_work_is_described_without_inventing_a_time(tmp_path, monkeypatch):
    disk = estimate_disk([], 1024, 1024)
    text = describe_work(480, 576, disk, tmp_path / "not yet there")
    assert "480 images to sample, 96 of 576 exist" in text
    assert "1.41 GiB on disk (at most" in text
    assert "the time is measured on the first batch" in text
    assert describe_work(0, 576, disk, tmp_path) == "all 576 images exist: nothing is sampled"
    monkeypatch.setattr(sampling_estimate, "_free_bytes", lambda folder: 5 << 20)
    assert "warning: only 5 MiB are free" in describe_work(480, 480, disk, tmp_path)


@pytest.mark.parametrize(
    ("seconds", "is_race", "hints"), [(1.0, False, 0), (80.0, False, 1), (80.0, True, 1)]
)
def test_the_time_is_printed_after_the_first_batch_with_ways_to_shorten_a_long_one(
    capsys, seconds, is_race, hints
):
    meter = SamplingMeter(400, is_race=is_race)
    assert meter.seconds_left is None
    meter.add(8, seconds)
    assert meter.seconds_left == pytest.approx(seconds * 49)
    printed = capsys.readouterr().err
    assert f"for the other 392 images, measured on the first 8 ({seconds / 8:.1f} s each)" in printed
    assert printed.count("shorter: ") == hints
    assert ("--race" in printed) == (bool(hints) and not is_race)
    meter.add(8, seconds)
    meter.variant_done("step-200", 1, 5)
    assert "step-200 is sampled, 1 of 5; about" in capsys.readouterr().err


def test_a_quiet_meter_prints_nothing(capsys):
    meter = SamplingMeter(400, quiet=True)
    meter.add(8, 1000)
    meter.variant_done("x", 1, 2)
    assert capsys.readouterr().err == ""
