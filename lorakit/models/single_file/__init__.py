"""A checkpoint in one file, as authors and other tools publish it: converted once into a diffusers folder.

A base may be `FILE.safetensors` or `FILE.safetensors@PARTS`. The file holds a denoiser, and perhaps an
autoencoder and text encoders. All else (settings, tokenizers, scheduler, networks that are not in the file)
comes from PARTS, a diffusers folder or hub id of the same model; without it, from the hub id that diffusers
knows for the file's layout. The folder lies in the cache under the hash of what it was made from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.models import hub
from lorakit.models.single_file import layout

INDEX = "model_index.json"
_SPEC_SEPARATOR = ".safetensors@"
_SETTINGS = ("json", "txt", "model", "jinja")
_SKIPPED_COMPONENTS = ("safety_checker",)  # a gigabyte that no family here uses


def split_spec(spec: str) -> tuple[str, str | None]:
    """(file, PARTS) of a base that is one file."""
    stem, mark, parts = spec.partition(_SPEC_SEPARATOR)
    return (stem + ".safetensors", parts) if mark else (spec, None)


def is_single_file(spec: str) -> bool:
    """Whether a base names a single file, there or not."""
    file = Path(split_spec(spec)[0])
    return file.suffix.lower() in (".safetensors", ".gguf", *layout.PICKLE_SUFFIXES) and not file.is_dir()


@dataclass(frozen=True)
class _Component:
    """A component of the pipeline; `inside`: in the checkpoint, else in the folder of PARTS."""

    name: str
    kind: str
    inside: bool


@dataclass(frozen=True)
class _ConversionSource:
    """Where everything comes from; `copied` are files of the folder `settings`."""

    file: Path
    settings: Path
    parts: list[_Component]
    copied: list[Path]
    where: str

    def key(self) -> str:
        """SHA-256 of what the folder is made from."""
        hashes = {p.relative_to(self.settings).as_posix(): storage.sha256_file(p) for p in self.copied}
        content = {"file": storage.sha256_file(self.file), "parts": hashes, "version": 1}
        return storage.sha256_bytes(storage.dump_json(content).encode())


def converted_folder(spec: str, cache: Path) -> Path:
    """The diffusers folder made from a single file, in `cache`; it is made when it is not there whole."""
    source = _plan_conversion(spec)
    made = cache / source.key()
    with _conversion_lock(made.with_suffix(".lock")):
        if not (made / INDEX).is_file():
            _convert(made, source)
    return made


def _plan_conversion(spec: str) -> _ConversionSource:
    """Find every part before anything is converted."""
    name, given = split_spec(spec)
    file, where = Path(name), f"base: {spec}"
    tensors = layout.read_tensor_shapes(file, where)
    source = given or layout.default_repo(tensors, where)
    settings = _settings_folder(source, where, [INDEX, "lorakit.json", *(f"*/*.{end}" for end in _SETTINGS)])
    index = storage.read_json(settings / INDEX)
    found = {k: v for k, v in index.items() if isinstance(v, list) and v[0] and k not in _SKIPPED_COMPONENTS}
    parts = [_Component(k, v[1], layout.has_component(tensors, k, v[1])) for k, v in found.items()]
    if not any(part.inside for part in parts if part.name in layout.DENOISERS):
        raise ConfigError(
            f"diffusers converts no single files for a {index.get('_class_name')}, as {source} is",
            where=where,
            remedy="give a diffusers folder of the model",
        )
    outside = [part.name for part in parts if not part.inside and _is_network(settings / part.name)]
    if outside and not Path(source).is_dir():
        settings = _settings_folder(source, where, [f"{name}/*.safetensors" for name in outside])
    copied = [file for file in (settings / INDEX, settings / "lorakit.json") if file.is_file()]
    for part in parts:
        copied += _component_files(settings / part.name, part.name in outside, where)
    return _ConversionSource(file, settings, parts, copied, where)


def _settings_folder(source: str, where: str, patterns: list[str]) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = hub.download_model(source, patterns)
        except ConfigError as error:
            raise ConfigError(
                f"a single file needs settings, here from {source}: {error.message}",
                where=where,
                remedy=f"{error.remedy}; or FILE.safetensors@FOLDER, with a diffusers folder of that model",
            ) from error
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"what follows @ is no diffusers folder: it has no {INDEX}",
            where=where,
            remedy="give the folder that holds model_index.json",
        )
    return folder


def _is_network(folder: Path) -> bool:
    """Tokenizers, processors and schedulers have settings under other names."""
    return (folder / "config.json").is_file()


def _component_files(folder: Path, weights: bool, where: str) -> list[Path]:
    """A component's files that are taken from PARTS."""
    here = sorted(folder.glob("*"))
    settings = [file for file in here if file.suffix.lstrip(".") in _SETTINGS]
    if not weights:
        return settings
    tensors = [file for file in here if file.suffix == ".safetensors"]
    if not tensors:
        raise ConfigError(
            f"neither the file nor its settings' folder holds weights for {folder.name}",
            where=where,
            remedy="name a whole diffusers folder or hub id after the file: FILE.safetensors@PARTS",
        )
    return settings + ([file for file in tensors if ".fp16" not in file.name] or tensors)


@contextlib.contextmanager
def _conversion_lock(lock: Path) -> Iterator[None]:
    """One process at a time: the others find the folder made."""
    while True:
        with storage.file_lock(lock) as mine:
            if mine:
                yield
                return
        time.sleep(0.5)


def _convert(out: Path, source: _ConversionSource) -> None:
    """Convert and copy; the index is written last, so that a folder with one is whole."""
    from safetensors.torch import load_file

    from lorakit.models.single_file import convert

    if out.exists():
        storage.remove_folder(out)
    index = storage.read_json(source.settings / INDEX)
    index |= {name: [None, None] for name in _SKIPPED_COMPONENTS if name in index}
    inside = [part for part in source.parts if part.inside]
    tensors = load_file(source.file)  # mapped, not read
    steps: list[_Component | Path] = [*inside, *(file for file in source.copied if file.name != INDEX)]
    for step in track_progress(steps, f"converting {source.file.name}", len(steps)):
        if isinstance(step, _Component):
            convert.convert_component(tensors, step.name, step.kind, source.settings, out, source.where)
            continue
        target = out / step.relative_to(source.settings)
        if not target.exists():  # settings of what was converted are written by their network
            storage.copy_file(step, target)
    storage.write_json(out / INDEX, index)
