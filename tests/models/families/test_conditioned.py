"""Edit pairs, inpainting and control: conditioning images, and refusals; `tests/test_guides.py` trains with
them."""

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
from lorakit.data import conditioning, fingerprints, prompts
from lorakit.models import families
from lorakit.training import run_plan
from tests import oracle, runs, tiny
from tests.models.families.common import (
    CAPTIONS,
    encode_all,
    family_of,
    images_for,
    noise_for,
    two_timesteps,
)

SIZES = [(80, 80), (96, 64), (80, 80)]


def _photo(seed: int, size: tuple[int, int]) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three images, not yet prepared."""
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate(SIZES):
        _photo(index, size).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("make it red")
    return folder


def _sources(folder: Path) -> None:
    for index, (width, height) in enumerate(SIZES):
        _photo(index + 10, (width // 2, height // 2)).save(folder / f"{index}.source.png")  # half the size


def _prepare(folder: Path) -> None:
    assert main.main(["data", "prepare", str(folder), "--resolution", "64", "--quiet", "--no-report"]) == 0


def _edits(folder: Path) -> None:
    _sources(folder)
    _prepare(folder)


@pytest.mark.parametrize("name", sorted(name for name, row in tiny.ROWS.items() if row.image_arguments))
def test_conditioning_images_matter_to_their_own_row_only(name):
    """Another image changes a row's prediction, and another row's image does not."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise, t = noise_for(name, rows=2), two_timesteps(family)
    conds = encode_all(name, pipe, CAPTIONS)
    latents = [key for key in conds[0] if key.endswith("_latents") or key == "image_embeds"]
    assert latents
    model = family.denoiser(pipe)
    with torch.no_grad():
        both = family.predict(model, noise, t, family.collate(conds))
        for key in latents:
            swapped = [{**conds[0], key: conds[1][key]}, conds[1]]
            other = family.predict(model, noise, t, family.collate(swapped))
            assert (other[0] - both[0]).abs().max() > 1e-4, key
            assert (other[1] - both[1]).abs().max() <= 1e-5


def test_the_oracle_detects_a_wrong_source(monkeypatch):
    """When the pipeline gets another image than `predict`."""
    for name in ("flux1-kontext", "sd15-inpaint", "flux1-control"):
        size = tiny.ROWS[name].sizes[0]
        family, pipe, noise = family_of(name), tiny.tiny_pipeline(name), noise_for(name)
        cond = family.collate(encode_all(name, pipe, CAPTIONS[:1]))
        t, other = two_timesteps(family)[0], images_for(name, size, 1)
        with torch.no_grad():
            expected = oracle.prediction(name, pipe, CAPTIONS[0], noise, t, *size, other)
            ours = family.predict(family.denoiser(pipe), noise, t[None], cond)
        assert (ours - expected).abs().max() > 1e-3


def test_a_control_lora_starts_as_the_base_model_and_loads_in_diffusers(tmp_path, caplog):
    """The widened base model predicts the same; diffusers' loader widens it for the exported file."""
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
    images = images_for("flux1-control")
    noise, t = noise_for("flux1-dev"), two_timesteps(control)[:1]
    text = control.collate(control.encode_text(pipe, CAPTIONS[:1]))
    cond = text | control.collate([control.encode_conditioning(pipe, images)])
    model = control.denoiser(pipe)
    adapters.inject_adapter(model, rank=4, alpha=4, targets=control.target_modules)
    with torch.no_grad():
        initial = control.predict(model, noise, t, cond)
        expected = families.get_family("flux1").predict(plain.transformer, noise, t, text)
        assert (initial - expected).abs().max() <= 1e-6
        for name, parameter in adapters.trainable_parameters(model):
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        trained = control.predict(model, noise, t, cond)
    metadata = {"rank": 4, "alpha": 4.0, "family": control.name, "type": "lora", "base_hash": ""}
    file = tmp_path / "adapter.safetensors"
    storage.write_safetensors(
        file, adapters.adapter_state_dict({"transformer": model}), adapters.pack_metadata(metadata)
    )
    (exported,) = formats.export_adapter(file, "diffusers", tmp_path / "out", base=base, dtype="fp32")
    other = FluxControlPipeline(
        **{
            name: part
            for name, part in tiny.build("flux1-dev").components.items()
            if name not in ("image_encoder", "feature_extractor")
        }
    )
    other.load_lora_weights(str(exported.path.parent), weight_name=exported.path.name)
    assert other.transformer.config.in_channels == 32
    with torch.no_grad():
        loaded = control.predict(other.transformer, noise, t, cond)
    assert (loaded - trained).abs().max() <= 1e-4 * trained.abs().max()
    assert (loaded - initial).abs().max() > 1e-3


# ---- alignment and refusals -------------------------------------------------------------------------------


def test_a_source_is_cropped_like_its_image(tmp_path):
    """It is red where the image is red, after a crop, another size, and rotation by EXIF."""
    image = Image.new("RGB", (160, 96), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 80, 96))
    image.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.resize((320, 192)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.source.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    _prepare(tmp_path)
    (record,) = manifest.load_manifest(tmp_path)
    (source_image,) = record.conditioning_images
    assert (source_image.type, source_image.file, source_image.origin) == ("source", "a.source.jpg", "file")
    assert (source_image.width, source_image.height) == (320, 192)
    family = families.get_family("flux1-kontext")
    inputs = conditioning.record_conditioning(family, tmp_path, record, (40, 0, 120, 96), (40, 48))
    (source,) = inputs.load_tensors()["source"]
    assert source.shape == (3, 48, 40)
    assert source[0, :, :18].min() > 200 > 60 > source[0, :, 22:].max()
    shifted = conditioning.record_conditioning(family, tmp_path, record, (41, 0, 121, 96), (40, 48))
    assert inputs.cache_key != shifted.cache_key


def test_a_column_may_name_several_sources(tmp_path):
    for index in range(3):
        _photo(index, (64, 64)).save(tmp_path / f"{'abc'[index]}.png")
    row = {"file_name": "a.png", "text": "join them", "source_file_name": ["c.png", "b.png"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    _prepare(tmp_path)
    (record,) = manifest.load_manifest(tmp_path)
    assert [image.file for image in record.conditioning_images] == ["c.png", "b.png"]
    assert fingerprints.dataset_fingerprint([record]) != fingerprints.dataset_fingerprint(
        [dataclasses.replace(record, conditioning_images=())]
    )
    inputs = conditioning.record_conditioning(
        families.get_family("flux2"), tmp_path, record, (0, 0, 64, 64), (64, 64)
    )
    assert len(inputs.images) == 2
    with pytest.raises(DataError, match="has 2 images of type source"):
        conditioning.check_record_conditioning(families.get_family("flux1-kontext"), tmp_path, [record])
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row | {"source_file_name": "no.png"}) + "\n")
    with pytest.raises(DataError, match=r"no source 'no\.png'"):
        prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True))


def _plan(row: str, data: Path, folder: Path) -> None:
    file = runs.make_recipe(folder / "r.json", tiny.tiny_folder(row), data, folder / "run")
    run_plan.plan_training(recipe.load_recipe(file), lambda text: None)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("flux1-kontext", r"3 of 3 images have no source(.|\n)*source\.png"),
        ("flux1-control", r"no control(.|\n)*lorakit data control"),
        ("sd15-inpaint", r"no mask(.|\n)*masklabel"),
    ],
)
def test_a_dataset_without_the_required_images_is_refused_before_any_work(row, words, photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    _prepare(data)
    with pytest.raises(DataError, match=words):
        _plan(row, data, tmp_path)


def test_conditioning_images_that_are_not_accepted_or_have_changed_are_refused(photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "data")
    _edits(data)
    for row, words in (("sd15", "source"), ("flux1-control", "no control")):
        with pytest.raises(DataError, match=words):
            _plan(row, data, tmp_path)
    _plan("flux1-kontext", data, tmp_path)
    _photo(99, (40, 40)).save(data / "1.source.png")
    with pytest.raises(DataError, match=r"source has changed(.|\n)*1\.source\.png"):
        _plan("flux1-kontext", data, tmp_path)
    (data / "1.source.png").unlink()
    _prepare(data)
    # sources are optional for flux2, but not for some images only
    for row in ("flux1-kontext", "flux2-klein"):
        with pytest.raises(DataError, match=r"1 of 3 images have no source: 1\.png"):
            _plan(row, data, tmp_path)


def test_a_u_net_without_channels_for_a_mask_is_refused(tmp_path):
    shutil.copytree(tiny.tiny_folder("sd15"), tmp_path / "base")
    file = tmp_path / "base/model_index.json"
    file.write_text(file.read_text().replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"))
    with pytest.raises(ConfigError, match="has 4 input channels"):
        families.detect_family(tmp_path / "base").load(
            tmp_path / "base", dtype=torch.float32, only=("scheduler",)
        )


def test_prompts_without_the_required_images_are_refused(tmp_path):
    plain = prompts.Prompt("a", "make it red", "make it red")
    with_image = dataclasses.replace(plain, images=(tmp_path / "a.png",))
    masked = dataclasses.replace(with_image, mask=tmp_path / "m.png")
    cases = [
        ("flux1-kontext", plain, "needs a source image"),
        ("sd15-inpaint", plain, "needs a source image"),
        ("sd15-inpaint", with_image, "needs a mask"),
        ("flux1-kontext", masked, "takes no mask"),
        ("flux1-kontext", dataclasses.replace(plain, images=(tmp_path, tmp_path)), "takes one image"),
    ]
    for name, prompt, words in cases:
        with pytest.raises(ConfigError, match=words):
            conditioning.check_prompt_conditioning(families.get_family(name), [prompt])
    for name, prompt in (
        ("flux2", plain),
        ("sd15", plain),
        ("flux1-kontext", with_image),
        ("sd15-inpaint", masked),
    ):
        conditioning.check_prompt_conditioning(families.get_family(name), [prompt])
