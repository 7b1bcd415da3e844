"""Conditioning images that a base model does not take: generated ones are ignored, the user's are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from data_tools.conditioning.controls import ControlOptions
from data_tools.conditioning.edges import canny
from data_tools.prepare import PrepareOptions, generate_dataset_controls, prepare_dataset
from lorakit import manifest
from lorakit.config.recipe import load_recipe
from lorakit.core.errors import DataError
from lorakit.data import conditioning
from lorakit.imaging import crops, decode
from lorakit.models import families
from lorakit.training import run_plan
from lorakit.training.run_plan import TrainingPlan
from tests import runs, tiny

PLAIN_BASES = ("sd15", "sd3", "flux1-dev", "flux2-klein")  # a U-Net, two DiTs, and one that takes sources


def with_controls(folder: Path, origin: str = "") -> Path:
    """Write a dataset with generated controls; with `origin`, as if the user had supplied them."""
    runs.make_dataset(folder, 3)
    generate_dataset_controls(folder, ControlOptions("canny"))
    if origin:
        records = [
            replace(r, conditioning_images=tuple(replace(i, origin=origin) for i in r.conditioning_images))
            for r in manifest.load_manifest(folder)
        ]
        manifest.save_manifest(folder, records)
    return folder


def plan(base: str | Path, data: Path, folder: Path, **changes: object) -> tuple[TrainingPlan, list[str]]:
    """Return the plan of a run on a base, and the lines that it logged."""
    lines: list[str] = []
    file = runs.make_recipe(folder / "r.json", base, data, folder / "run", **changes)
    return run_plan.plan_training(load_recipe(file), lines.append), lines


@pytest.mark.parametrize("row", PLAIN_BASES)
def test_a_base_without_control_input_ignores_generated_controls_with_one_line(
    row: str, tmp_path: Path
) -> None:
    base, data = tiny.tiny_folder(row), runs.make_dataset(tmp_path / "data", 3)
    before, _ = plan(base, data, tmp_path)
    generate_dataset_controls(data, ControlOptions("canny"))
    after, lines = plan(base, data, tmp_path)
    assert after.family is before.family
    assert after.input_hashes == before.input_hashes  # a run that has begun goes on
    assert not any(item.record.conditioning_images for item in after.items)
    assert [line for line in lines if "not used" in line] == [
        f"3 generated images of type control are not used: {after.family.title} takes none"
    ]


def test_an_inpainting_base_ignores_generated_controls_and_uses_generated_masks(tmp_path: Path) -> None:
    data = with_controls(tmp_path / "data")
    generate_dataset_controls(data, ControlOptions("mask"))
    planned, lines = plan(tiny.tiny_folder("sd15-inpaint"), data, tmp_path)
    assert planned.family.name == "sd15-inpaint"
    assert all(item.record.mask and not item.record.conditioning_images for item in planned.items)
    assert any("3 generated images of type control are not used" in line for line in lines)


@pytest.mark.parametrize("origin", ["file", "metadata"])
@pytest.mark.parametrize("row", ["sd15", "sd3", "sd15-inpaint"])
def test_a_control_of_the_user_is_refused_by_a_base_that_takes_none(
    row: str, origin: str, tmp_path: Path
) -> None:
    data = with_controls(tmp_path / "data", origin)
    generate_dataset_controls(data, ControlOptions("mask"))
    with pytest.raises(DataError, match=r"comes with a control, which .* does not take") as caught:
        plan(tiny.tiny_folder(row), data, tmp_path)
    assert "use a base model that takes a control" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("row", "changes"), [("flux1-control", {}), ("flux1-dev", {"use_generated_controls": True})]
)
def test_a_control_base_uses_generated_controls(row: str, changes: dict, tmp_path: Path) -> None:
    planned, lines = plan(tiny.tiny_folder(row), with_controls(tmp_path / "data"), tmp_path, **changes)
    assert planned.family.name == "flux1-control"
    assert all(len(item.record.conditioning_images) == 1 for item in planned.items)
    assert not any("not used" in line for line in lines)


@pytest.mark.parametrize("size", [(300, 200), (203, 331), (64, 64), (150, 97)])
def test_edges_reach_the_model_one_pixel_wide_and_in_place(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (40, 90, 60))
    drawing = ImageDraw.Draw(image)
    width, height = size
    drawing.rectangle((width // 4, height // 4, width // 2, height // 2), fill=(250, 230, 90))
    drawing.ellipse((width // 3, height // 3, width * 3 // 4, height * 3 // 4), fill=(200, 20, 180))
    image.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("shapes")
    options = PrepareOptions(resolution=96, bucket_mode="square", quiet=True, report=False)
    prepare_dataset(tmp_path, options)
    family = families.get_family("flux1-control")
    (record,) = generate_dataset_controls(tmp_path, ControlOptions("canny")).records
    crop, bucket = crops.training_crop(record), record.bucket
    assert bucket == (96, 96)
    inputs = conditioning.record_conditioning(family, tmp_path, record, crop, bucket)
    edges = inputs.load_tensors()["control"][0].numpy()
    assert set(np.unique(edges)) == {0, 255}  # nothing was resampled
    trained = decode.crop_and_resize(decode.read_record_image(tmp_path, record), crop, bucket)
    expected = Image.fromarray(np.asarray(canny(trained))[:, :, 0])
    near = np.asarray(expected.filter(ImageFilter.MaxFilter(3)))
    assert (near[edges[0] > 0] == 255).mean() > 0.98  # those of the image that is trained, within a pixel


def test_flux_becomes_a_control_base_for_controls_of_the_user_without_a_setting(tmp_path: Path) -> None:
    planned, _ = plan(tiny.tiny_folder("flux1-dev"), with_controls(tmp_path / "data", "file"), tmp_path)
    assert planned.family.name == "flux1-control"


def test_controls_that_are_generated_during_a_run_do_not_stop_it(tmp_path: Path) -> None:
    data = runs.make_dataset(tmp_path / "data", 3)
    train = {"steps": 2, "batch_size": 1, "save_every": 1, "precision": "fp32"}
    file = runs.make_recipe(tmp_path / "r.json", "tiny-dit", data, tmp_path / "run", train=train)
    with runs.killed_at(1):
        runs.train(file)
    generate_dataset_controls(data, ControlOptions("canny"))
    assert (runs.train(file) / "adapter.safetensors").is_file()
