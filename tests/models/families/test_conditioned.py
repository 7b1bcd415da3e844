"""Edit pairs, inpainting and control: what is shown to the base, and refusals; `tests/test_guides.py` has the
whole way."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import adapters, manifest
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import conditioning, prompts
from lorakit.models import families
from lorakit.training import run_plan
from tests import oracle, runs, tiny
from tests.models.families.common import (
    CAPTIONS,
    conditions,
    family_of,
    noise_for,
    pictures_for,
    times,
)

SIZES = [(80, 80), (96, 64), (80, 80)]


def _photo(seed: int, size: tuple[int, int]) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, not yet prepared."""
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate(SIZES):
        _photo(index, size).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("make it red")
    return folder


def _sources(folder: Path) -> None:
    for index, (width, height) in enumerate(SIZES):
        _photo(index + 10, (width // 2, height // 2)).save(folder / f"{index}.source.png")  # half as large


def _prepare(folder: Path) -> None:
    assert main.main(["data", "prepare", str(folder), "--resolution", "64", "--quiet", "--no-report"]) == 0


def _edits(folder: Path) -> None:
    _sources(folder)
    _prepare(folder)


@pytest.mark.parametrize("name", sorted(name for name, row in tiny.ROWS.items() if row.shown))
def test_the_pictures_matter_to_each_row_alone(name):
    """Another picture moves a row's prediction, and its neighbour's picture does not."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise, t = noise_for(name, rows=2), times(family)
    conds = conditions(name, pipe, CAPTIONS)
    latents = [key for key in conds[0] if key.endswith("_latents")]
    assert latents
    model = family.denoiser(pipe)
    with torch.no_grad():
        both = family.predict(model, noise, t, family.collate(conds))
        for key in latents:
            swapped = [{**conds[0], key: conds[1][key]}, conds[1]]
            other = family.predict(model, noise, t, family.collate(swapped))
            assert (other[0] - both[0]).abs().max() > 1e-4, key
            assert (other[1] - both[1]).abs().max() <= 1e-5


def test_a_wrong_source_is_found(monkeypatch):
    """The oracle bites: what is shown to the pipeline is not what `predict` is told."""
    for name in ("flux1-kontext", "sd15-inpaint", "flux1-control"):
        size = tiny.ROWS[name].sizes[0]
        family, pipe, noise = family_of(name), tiny.tiny_pipeline(name), noise_for(name)
        cond = family.collate(conditions(name, pipe, CAPTIONS[:1]))
        t, other = times(family)[0], pictures_for(name, size, 1)
        with torch.no_grad():
            expected = oracle.prediction(name, pipe, CAPTIONS[0], noise, t, *size, other)
            ours = family.predict(family.denoiser(pipe), noise, t[None], cond)
        assert (ours - expected).abs().max() > 1e-3


def test_a_control_lora_begins_as_the_base_and_loads_in_diffusers(tmp_path, caplog):
    """Widened, the base predicts what it did; diffusers' loader widens it for the exported file."""
    from diffusers import FluxControlPipeline

    from lorakit.adapters import formats

    base, control = tiny.tiny_folder("flux1-dev"), families.get_family("flux1-control")
    assert families.detect_family(base, {"control"}) is control
    assert (
        families.detect_family(base)
        is families.detect_family(base, {"source"})
        is families.get_family("flux1")
    )
    pipe, plain = control.load(base, dtype=torch.float32), tiny.tiny_pipeline("flux1-dev")
    pictures = pictures_for("flux1-control")
    noise, t = noise_for("flux1-dev"), times(control)[:1]
    text = control.collate(control.encode(pipe, CAPTIONS[:1]))
    cond = text | control.collate([control.condition(pipe, pictures)])
    model = control.denoiser(pipe)
    adapters.inject_adapter(model, rank=4, alpha=4, targets=control.targets)
    with torch.no_grad():
        begun = control.predict(model, noise, t, cond)
        expected = families.get_family("flux1").predict(plain.transformer, noise, t, text)
        assert (begun - expected).abs().max() <= 1e-6
        for name, parameter in adapters.trainable_parameters(model):
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        trained = control.predict(model, noise, t, cond)
    facts = {"rank": 4, "alpha": 4.0, "family": control.name, "type": "lora", "base_hash": ""}
    file = tmp_path / "adapter.safetensors"
    storage.write_safetensors(file, adapters.state(model, "transformer"), adapters.pack_metadata(facts))
    (made,) = formats.export_adapter(file, "diffusers", tmp_path / "out", base=base)
    other = FluxControlPipeline(
        **{
            name: part
            for name, part in tiny.build("flux1-dev").components.items()
            if name not in ("image_encoder", "feature_extractor")
        }
    )
    other.load_lora_weights(str(made.path.parent), weight_name=made.path.name)
    assert other.transformer.config.in_channels == 32
    with torch.no_grad():
        loaded = control.predict(other.transformer, noise, t, cond)
    assert (loaded - trained).abs().max() <= 1e-4 * trained.abs().max()
    assert (loaded - begun).abs().max() > 1e-3


# ---- alignment and refusals -------------------------------------------------------------------------------


def test_a_source_is_cropped_as_its_image_is(tmp_path):
    """Red where the image is red, through a crop, another size, and rotation by EXIF."""
    image = Image.new("RGB", (160, 96), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 80, 96))
    image.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.resize((320, 192)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.source.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    _prepare(tmp_path)
    (record,) = manifest.load_manifest(tmp_path)
    (given,) = record.given
    assert (given.kind, given.file, given.by) == ("source", "a.source.jpg", "sidecar")
    assert (given.width, given.height) == (320, 192)
    family = families.get_family("flux1-kontext")
    seen = conditioning.record_conditioning(family, tmp_path, record, (40, 0, 120, 96), (40, 48))
    (source,) = seen.read()["source"]
    assert source.shape == (3, 48, 40)
    assert source[0, :, :18].min() > 200 > 60 > source[0, :, 22:].max()
    assert (
        seen.key != conditioning.record_conditioning(family, tmp_path, record, (41, 0, 121, 96), (40, 48)).key
    )


def test_several_sources_and_columns(tmp_path):
    for index in range(3):
        _photo(index, (64, 64)).save(tmp_path / f"{'abc'[index]}.png")
    row = {"file_name": "a.png", "text": "join them", "source_file_name": ["c.png", "b.png"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    _prepare(tmp_path)
    (record,) = manifest.load_manifest(tmp_path)
    assert [one.file for one in record.given] == ["c.png", "b.png"]
    assert manifest.dataset_fingerprint([record]) != manifest.dataset_fingerprint(
        [dataclasses.replace(record, given=())]
    )
    assert (
        len(
            conditioning.record_conditioning(
                families.get_family("flux2"), tmp_path, record, (0, 0, 64, 64), (64, 64)
            ).parts
        )
        == 2
    )
    with pytest.raises(DataError, match="has 2 pictures as source"):
        conditioning.check_record_conditioning(families.get_family("flux1-kontext"), tmp_path, [record])
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row | {"source_file_name": "no.png"}) + "\n")
    with pytest.raises(DataError, match=r"no source 'no\.png'"):
        prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True))


def _planned(row: str, data: Path, folder: Path) -> None:
    made = runs.make_recipe(folder / "r.json", tiny.tiny_folder(row), data, folder / "run")
    run_plan.plan_training(recipe.load_recipe(made), lambda text: None)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("flux1-kontext", r"3 of 3 images have no source(.|\n)*source\.png"),
        ("flux1-control", r"no control(.|\n)*lorakit data control"),
        ("sd15-inpaint", r"no mask(.|\n)*masklabel"),
    ],
)
def test_a_base_without_its_pictures_is_refused_before_any_work(row, words, photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    _prepare(data)
    with pytest.raises(DataError, match=words):
        _planned(row, data, tmp_path)


def test_pictures_that_a_base_cannot_take_and_changed_ones_are_refused(photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    _edits(data)
    for row, kind in (("sd15", "source"), ("flux1-control", "no control")):
        with pytest.raises(DataError, match=kind):
            _planned(row, data, tmp_path)
    _planned("flux1-kontext", data, tmp_path)
    _photo(99, (40, 40)).save(data / "1.source.png")
    with pytest.raises(DataError, match=r"source has changed(.|\n)*1\.source\.png"):
        _planned("flux1-kontext", data, tmp_path)
    (data / "1.source.png").unlink()
    _prepare(data)
    for row in ("flux1-kontext", "flux2-klein"):  # one of them may do without, but not for some images only
        with pytest.raises(DataError, match=r"1 of 3 images have no source: 1\.png"):
            _planned(row, data, tmp_path)


def test_a_u_net_without_channels_for_a_mask_is_refused(tmp_path):
    shutil.copytree(tiny.tiny_folder("sd15"), tmp_path / "base")
    file = tmp_path / "base/model_index.json"
    file.write_text(file.read_text().replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"))
    with pytest.raises(ConfigError, match="takes 4 channels"):
        families.detect_family(tmp_path / "base").load(
            tmp_path / "base", dtype=torch.float32, only=("scheduler",)
        )


def test_prompts_without_pictures_are_refused(tmp_path):
    plain = prompts.Prompt("a", "make it red", "make it red")
    image = dataclasses.replace(plain, image=tmp_path / "a.png")
    masked = dataclasses.replace(image, mask=tmp_path / "m.png")
    cases = [
        ("flux1-kontext", plain, "draws from a source"),
        ("sd15-inpaint", plain, "draws from a source"),
        ("sd15-inpaint", image, "where to paint"),
        ("flux1-kontext", masked, "takes no mask"),
        ("flux1-kontext", dataclasses.replace(image, further=(tmp_path,)), "takes one image"),
    ]
    for name, prompt, words in cases:
        with pytest.raises(ConfigError, match=words):
            conditioning.check_prompt_conditioning(families.get_family(name), [prompt])
    for name, prompt in (
        ("flux2", plain),
        ("sd15", plain),
        ("flux1-kontext", image),
        ("sd15-inpaint", masked),
    ):
        conditioning.check_prompt_conditioning(families.get_family(name), [prompt])
