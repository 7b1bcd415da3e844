"""Exports for other trainers: all that they read is there, the rest is named, and it can be imported again.

The loading code of sd-scripts, OneTrainer and ai-toolkit was run on such exports by hand; its rules are here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from data_tools.formats.import_export import export_dataset, import_dataset
from data_tools.formats.trainers import TRAINERS
from data_tools.formats.transfer_result import TransferResult
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.imaging import masks
from lorakit.manifest import Record
from tests.data_tools.folders import fill, photo

SIZE = (48, 40)
OPTIONS = PrepareOptions(resolution=32, quiet=True, report=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: variants, tags, braces, a mask, EXIF rotation, transparency, types, repeats."""
    names = {"a.png": "a {red} dog", "10_sks dog/c.webp": None, "plain.jpg": "one cat", "deep.tiff": "a tiff"}
    folder = fill(tmp_path_factory.mktemp("trainers") / "source", names, size=SIZE)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(7, SIZE).save(folder / "turned.jpg", exif=exif)
    (folder / "turned.json").write_text('{"captions": ["1girl, solo", "1girl, hat"], "tags": ["tree"]}')
    photo(8, SIZE).save(folder / "noending", format="PNG")
    (folder / "noending.txt").write_text("no ending")
    half = photo(9, SIZE).convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(SIZE))
    half.save(folder / "half.png")
    (folder / "half.txt").write_text("half")
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (10, 10, 30, 30))
    mask.save(folder / "a-masklabel.png")
    prepare_dataset(folder, OPTIONS)
    return folder


def kept(folder: Path) -> dict[str, Record]:
    return {record.file: record for record in manifest.load_manifest(folder) if record.keep}


def export(source: Path, out: Path, name: str) -> TransferResult:
    return export_dataset(source, name, out, folder_name="sks dog")


def images_of(folder: Path, name: str) -> list[Path]:
    """Return the files that the trainer trains on, by its rules."""
    trainer = TRAINERS[name]
    paths = [path for top in folder.glob("*_sks dog") for path in top.iterdir()]
    labels = ("-masklabel", "-condlabel") if name == "onetrainer" else ()
    return sorted(
        path for path in paths if path.suffix.lower() in trainer.suffixes and not path.stem.endswith(labels)
    )


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_finds_each_image_once_with_its_captions(source: Path, tmp_path: Path, name: str) -> None:
    done = export(source, tmp_path / "out", name)
    images = images_of(tmp_path / "out", name)
    assert len(images) == done.num_images == len(kept(source)) == 7
    captions = {path.stem: path.with_suffix(".txt").read_text().strip().split("\n") for path in images}
    variants = ["1girl, solo", "1girl, hat"]
    assert captions["turned"] == (variants if name != "ai-toolkit" else variants[:1])
    assert captions["a"] == ["a {{red}} dog" if name == "kohya" else "a {red} dog"]
    assert captions["c"] == ["sks dog"]
    lost = [text for text in done.left_out.names("caption") if "1girl, hat" in text]
    assert len(lost) == (name == "ai-toolkit")
    assert done.left_out.names("image's tags") == ["turned.jpg"]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_without_color_and_exif_sees_the_pixels_that_lorakit_trains_on(
    source: Path, tmp_path: Path, name: str
) -> None:
    export(source, tmp_path / "out", name)
    paths = {path.stem: path for path in images_of(tmp_path / "out", name)}
    with Image.open(paths["turned"]) as image:  # sd-scripts opens images like this
        assert image.size == (SIZE if name != "kohya" else SIZE[::-1])
    with Image.open(paths["half"]) as image:
        assert image.mode == "RGB"
    assert paths["noending"].suffix == ".png"
    assert paths["deep"].suffix == (".tiff" if name == "onetrainer" else ".png")
    assert paths["plain"].read_bytes() == (source / "plain.jpg").read_bytes()


def test_masks_for_sd_scripts_have_the_size_of_every_image(source: Path, tmp_path: Path) -> None:
    done = export(source, tmp_path / "out", "kohya")
    config = tomllib.loads((tmp_path / "out/dataset.toml").read_text())
    assert config["general"]["enable_wildcard"] is True
    assert "--masked_loss" in done.summary()
    subsets = {one["num_repeats"]: one for dataset in config["datasets"] for one in dataset["subsets"]}
    assert "conditioning_data_dir" not in subsets[10]
    images, folder = Path(subsets[1]["image_dir"]), Path(subsets[1]["conditioning_data_dir"])
    names = sorted(path.stem for path in images.iterdir() if path.suffix != ".txt")
    assert sorted(path.stem for path in folder.iterdir()) == names
    for path in images_of(tmp_path / "out", "kohya"):
        if path.parent == images:
            with Image.open(path) as image, Image.open(folder / f"{path.stem}.png") as mask:
                assert image.size == mask.size
    with Image.open(folder / "a.png") as mask:
        assert masks.mask_hash(mask) == kept(source)["a.png"].mask_content_hash


def test_the_folders_for_ai_toolkit_are_in_its_configuration(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "ai-toolkit")
    (plain, masked) = yaml.safe_load((tmp_path / "out/datasets.yaml").read_text())["datasets"]
    assert (plain["num_repeats"], masked["num_repeats"]) == (10, 1)
    assert [path.name for path in Path(masked["mask_path"]).iterdir()] == ["a.png"]
    assert "mask_path" not in plain


@pytest.mark.parametrize("name", TRAINERS)
def test_an_export_for_a_trainer_is_imported_with_everything(source: Path, tmp_path: Path, name: str) -> None:
    export(source, tmp_path / "out", name)
    import_dataset(tmp_path / "back", [tmp_path / "out"])
    prepare_dataset(tmp_path / "back", OPTIONS)
    stems = {Path(record.file).stem: record for record in kept(tmp_path / "back").values()}
    for file, record in kept(source).items():
        again = stems[Path(file).stem]
        texts = [caption.text for caption in record.captions]
        assert [caption.text for caption in again.captions] == texts
        assert (again.tags, again.repeats, again.size) == (record.tags, record.repeats, record.size)
        if record.mask:
            assert again.mask_content_hash == record.mask_content_hash


@pytest.mark.parametrize("name", [*TRAINERS, "webdataset", "parquet", "imagefolder", "zip"])
def test_conditioning_images_are_carried_or_named(tmp_path: Path, name: str) -> None:
    folder = fill(tmp_path / "in", {"a.png": "red", "b.png": "snow"}, size=SIZE)
    for file in ("a", "b"):
        photo(5, SIZE).save(folder / f"{file}.control.png")
        photo(6, SIZE).save(folder / f"{file}.source.png")
    prepare_dataset(folder, OPTIONS)
    out = tmp_path / ("out.zip" if name == "zip" else "out")
    done = export(folder, out, name)
    import_dataset(tmp_path / "back", [out])
    prepare_dataset(tmp_path / "back", OPTIONS)
    lost = done.left_out.names("source image")
    for record in kept(tmp_path / "back").values():
        types = [image.type for image in record.conditioning_images]
        assert sorted(types + ["source"] * bool(lost)) == ["control", "source"]
    assert len(kept(tmp_path / "back")) == 2
    assert lost == (["a.source.png", "b.source.png"] if name in ("kohya", "onetrainer") else [])
