"""The formats: how an input is mutated, and what of lorakit reads it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.fuzz import binaries, images, texts


class Kind(NamedTuple):
    """A format: a function that returns mutated files by name, and one that reads them from a folder."""

    generate: Callable[[random.Random], texts.Files]
    read: Callable[[Path], object]


def _recipe(folder: Path) -> object:
    from lorakit.config.recipe import load_recipe

    return load_recipe(folder / "recipe.yaml")


def _override(folder: Path) -> object:
    from lorakit.config.recipe import load_recipe

    (folder / "recipe.yaml").write_text(texts.dump(texts.RECIPE), encoding="utf-8")
    text = (folder / "override.txt").read_bytes().decode("utf-8", "surrogateescape")
    return load_recipe(folder / "recipe.yaml", [text])


def _prompts(folder: Path) -> object:
    from lorakit.data.prompts import load_prompts
    from lorakit.data.subjects import Subject

    return load_prompts(next(folder.glob("prompts.*")), [Subject("sks", "dog")])


def _captions(folder: Path) -> object:
    from data_tools.captions.collect import CaptionOptions, collect_captions
    from data_tools.captions.metadata import with_tables
    from data_tools.listing import list_dataset
    from lorakit.core.errors import DataError
    from lorakit.manifest import Record

    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    listing = with_tables(list_dataset(folder))
    records = [Record(name, "0" * 64, "0" * 64, 8, 8) for name in listing.images]
    captioned = collect_captions(listing, records, CaptionOptions(class_noun="dog", trigger="sks"))
    notes = [note for record in captioned for note in record.notes if note.startswith("caption_unreadable")]
    if notes or listing.tables.problems:  # findings, which do not stop the other images
        raise DataError("text that is not used", where=str(folder))
    return captioned


def _manifest(folder: Path) -> object:
    from lorakit import manifest
    from lorakit.data import fingerprints

    records = manifest.load_manifest(folder)
    return manifest.user_metadata_files(folder), fingerprints.dataset_fingerprint(records)


def _run(folder: Path) -> object:
    from lorakit.core import checksums, storage
    from lorakit.training.run import Run
    from lorakit.training.run_folder import RunFolder

    run = Run(folder)
    for file in folder.rglob("*.json"):
        checksums.find_folder_damage(file.parent)
        storage.read_json(file)
    return RunFolder(folder).record(), run.recipe, run.metrics, run.step, run.status, run.checkpoints


def _safetensors(folder: Path) -> object:
    from lorakit.core import safetensors_header

    return safetensors_header.read_header(folder / "adapter.safetensors")


def _adapter(folder: Path) -> object:
    from lorakit.adapters.formats import read_adapter_file

    return read_adapter_file(folder / "adapter.safetensors", allow_nonfinite=True)


def _archive(folder: Path) -> object:
    from data_tools.formats.import_export import import_dataset

    return import_dataset(folder / "out", [next(folder.iterdir())])


def _table(folder: Path) -> object:
    from data_tools.formats.source_folder import SourceFolder
    from data_tools.formats.table_rows import iter_rows
    from data_tools.formats.tables import read_tables

    file = next(folder.iterdir())
    if file.suffix == ".parquet":
        return sum(1 for _ in read_tables([("", file)], SourceFolder(folder)))
    return sum(1 for _ in iter_rows(file, lambda names, where: None))


def _image(folder: Path) -> object:
    from lorakit.imaging import decode

    data = (folder / "image.png").read_bytes()
    options = {"background": decode.WHITE, "max_pixels": decode.MAX_PIXELS}
    source = decode.open_source(data, where="image.png", first_frame=len(data) % 2 == 0, **options)
    return decode.inspect_image(source)


KINDS = {
    "recipe": Kind(texts.recipe, _recipe),
    "override": Kind(texts.override, _override),
    "prompts": Kind(texts.prompts, _prompts),
    "captions": Kind(texts.captions, _captions),
    "manifest": Kind(texts.dataset_manifest, _manifest),
    "run": Kind(texts.run_files, _run),
    "safetensors": Kind(binaries.safetensors, _safetensors),
    "adapter": Kind(binaries.safetensors, _adapter),
    "zip": Kind(binaries.zip_archive, _archive),
    "tar": Kind(binaries.tar_archive, _archive),
    "table": Kind(binaries.table, _table),
    "image": Kind(images.image, _image),
}
