"""Conversion of single-file checkpoints, as authors and other tools publish them, to diffusers folders.

A base model may be `FILE.safetensors` or `FILE.safetensors@PARTS`. The file contains a denoiser, and perhaps
a VAE and text encoders. The rest (settings, tokenizers, scheduler, networks that are not in the file) comes
from PARTS, a diffusers folder or hub id of the same model; without it, from the hub id that diffusers knows
for the file's layout. The result is stored once in the cache, under the hash of its sources.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.models import hub
from lorakit.models.single_file import layout

INDEX = "model_index.json"
_SPEC_SEPARATOR = ".safetensors@"
_SETTINGS = ("json", "txt", "model", "jinja")
_SKIPPED_COMPONENTS = ("safety_checker",)  # a gigabyte that no family here uses


@dataclass(frozen=True)
class SingleFileSpec:
    """FILE and PARTS of a base model that is one file."""

    file: str
    parts: str | None


def split_spec(spec: str) -> SingleFileSpec:
    """Split `FILE.safetensors@PARTS`; PARTS is None if it is missing."""
    stem, separator, parts = spec.partition(_SPEC_SEPARATOR)
    return SingleFileSpec(stem + ".safetensors", parts) if separator else SingleFileSpec(spec, None)


def is_single_file(spec: str) -> bool:
    """Return True if a base model is a single file, whether it exists or not."""
    file = Path(split_spec(spec).file)
    return file.suffix.lower() in (".safetensors", ".gguf", *layout.PICKLE_SUFFIXES) and not file.is_dir()


@dataclass(frozen=True)
class _Component:
    """A component of the pipeline."""

    name: str
    class_name: str
    in_checkpoint: bool
    """False if it comes from PARTS."""


@dataclass(frozen=True)
class _ConversionSource:
    """Sources of a conversion."""

    file: Path
    settings_folder: Path
    components: list[_Component]
    copied_files: list[Path]
    """Files of `settings_folder` that are copied."""
    where: str

    def key(self) -> str:
        """Return the SHA-256 of all sources."""
        hashes = {
            file.relative_to(self.settings_folder).as_posix(): checksums.sha256_file(file)
            for file in self.copied_files
        }
        content = {"file": checksums.sha256_file(self.file), "parts": hashes, "version": 1}
        return checksums.sha256_bytes(storage.dump_json(content).encode())


def converted_folder(spec: str, cache: Path) -> Path:
    """Return the diffusers folder of a single file in `cache`; convert it if it is missing or incomplete.

    Raises ConfigError if the file, or a component of the model, is missing or unsupported.
    """
    source = _plan_conversion(spec)
    folder = cache / source.key()
    with _conversion_lock(folder.with_suffix(".lock")):
        if not (folder / INDEX).is_file():
            _convert(folder, source)
    return folder


def _plan_conversion(spec: str) -> _ConversionSource:
    """Find all components before anything is converted."""
    parsed = split_spec(spec)
    file, where = Path(parsed.file), f"base: {spec}"
    tensors = layout.read_tensor_shapes(file, where)
    source = parsed.parts or layout.default_repo(tensors, where)
    settings = _settings_folder(source, where, [INDEX, "lorakit.json", *(f"*/*.{end}" for end in _SETTINGS)])
    index = storage.read_json(settings / INDEX)
    components = [
        _Component(name, value[1], layout.has_component(tensors, name, value[1]))
        for name, value in index.items()
        if isinstance(value, list) and value[0] and name not in _SKIPPED_COMPONENTS
    ]
    if not any(component.in_checkpoint for component in components if component.name in layout.DENOISERS):
        raise ConfigError(
            f"diffusers cannot convert single files to {index.get('_class_name')}, the class of {source}",
            where=where,
            remedy="use a diffusers folder of the model",
        )
    outside = [
        component.name
        for component in components
        if not component.in_checkpoint and _is_network(settings / component.name)
    ]
    if outside and not Path(source).is_dir():
        settings = _settings_folder(source, where, [f"{name}/*.safetensors" for name in outside])
    copied = [file for file in (settings / INDEX, settings / "lorakit.json") if file.is_file()]
    for component in components:
        copied += _component_files(settings / component.name, component.name in outside, where)
    return _ConversionSource(file, settings, components, copied, where)


def _settings_folder(source: str, where: str, patterns: list[str]) -> Path:
    """Return the local folder of PARTS, downloaded if it is a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = hub.download_model(source, patterns)
        except ConfigError as error:
            raise ConfigError(
                f"the settings for the single file cannot be loaded from {source}: {error.message}",
                where=where,
                remedy=f"{error.remedy}; or use FILE.safetensors@FOLDER with a diffusers folder of it",
            ) from error
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"the part after @ is not a diffusers folder: it has no {INDEX}",
            where=where,
            remedy="name the folder with model_index.json",
        )
    return folder


def _is_network(folder: Path) -> bool:
    """Return True for a network's folder: tokenizers, processors and schedulers have no config.json."""
    return (folder / "config.json").is_file()


def _component_files(folder: Path, weights: bool, where: str) -> list[Path]:
    """Return a component's files in PARTS: its settings, and its weights if `weights`."""
    files = sorted(folder.glob("*"))
    settings = [file for file in files if file.suffix.lstrip(".") in _SETTINGS]
    if not weights:
        return settings
    tensors = [file for file in files if file.suffix == ".safetensors"]
    if not tensors:
        raise ConfigError(
            f"neither the file nor the folder of its settings has weights for {folder.name}",
            where=where,
            remedy="name a whole diffusers folder or hub id after the file: FILE.safetensors@PARTS",
        )
    return settings + ([file for file in tensors if ".fp16" not in file.name] or tensors)


@contextlib.contextmanager
def _conversion_lock(lock: Path) -> Iterator[None]:
    """Let one process convert at a time: the others then find the finished folder."""
    while True:
        with storage.file_lock(lock) as acquired:
            if acquired:
                yield
                return
        time.sleep(0.5)


def _convert(out: Path, source: _ConversionSource) -> None:
    """Convert and copy; the index is written last, so that a folder with an index is complete."""
    from safetensors.torch import load_file

    from lorakit.models.single_file import convert

    if out.exists():
        storage.remove_folder(out)
    index = storage.read_json(source.settings_folder / INDEX)
    index |= {name: [None, None] for name in _SKIPPED_COMPONENTS if name in index}
    converted = [component for component in source.components if component.in_checkpoint]
    tensors = load_file(source.file)  # memory-mapped
    steps: list[_Component | Path] = [
        *converted,
        *(file for file in source.copied_files if file.name != INDEX),
    ]
    for step in track_progress(steps, f"converting {source.file.name}", len(steps)):
        if isinstance(step, _Component):
            convert.convert_component(
                tensors, step.name, step.class_name, source.settings_folder, out, source.where
            )
            continue
        target = out / step.relative_to(source.settings_folder)
        if not target.exists():  # converted networks wrote their own settings
            storage.copy_file(step, target)
    storage.write_json(out / INDEX, index)
