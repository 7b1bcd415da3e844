"""The weights of a base model, one at a time, straight from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from lorakit.core import safetensors_header
from lorakit.core.errors import ConfigError, DataError


class BaseWeights:
    """Tensors of a diffusers folder by `<component>.<module>.weight`; nothing is kept in memory."""

    def __init__(self, folder: Path, renamed: Mapping[str, str] | None = None) -> None:
        """`renamed` tells which component of the folder a name stands for, where it is another."""
        if not folder.is_dir():
            raise ConfigError(
                "the base must be a folder as diffusers saves it",
                where=str(folder),
                remedy="give that folder",
            )
        self.folder = folder
        self._renamed = dict(renamed or {})
        self._found: dict[str, dict[str, Path]] = {}

    def files(self, component: str) -> dict[str, Path]:
        """File of each tensor of a component; one that has several copies is read from the plain one."""
        if component not in self._found:
            files = sorted(
                (self.folder / component).glob("*.safetensors"), key=lambda file: file.name.count(".")
            )
            if not files:
                raise ConfigError(
                    f"the base has no weights of {component}",
                    where=str(self.folder / component),
                    remedy="give the folder of the base the adapter was trained on",
                )
            found: dict[str, Path] = {}
            for file in files:
                for name in tensor_names(file):
                    found.setdefault(name, file)
            self._found[component] = found
        return self._found[component]

    def key(self, module: str) -> tuple[str, str]:
        """(component, tensor name) of a module's weight; ConfigError when the base has no such module."""
        component, path = module.split(".", 1)
        component = self._renamed.get(component, component)
        files = self.files(component)
        for name in (f"{path}.weight", f"{path.removeprefix('text_model.')}.weight"):
            if name in files:
                return component, name
        raise ConfigError(
            f"the base has no module {module}",
            where=str(self.folder),
            remedy="give the folder of the base the adapter was trained on",
        )

    def read(self, module: str) -> torch.Tensor:
        """A module's weight, on the CPU, in its own precision."""
        from safetensors import safe_open

        component, name = self.key(module)
        with safe_open(self.files(component)[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def shape(self, module: str) -> tuple[int, ...]:
        """Shape of a module's weight, from the header."""
        from safetensors import safe_open

        component, name = self.key(module)
        with safe_open(self.files(component)[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())


def tensor_names(file: Path) -> list[str]:
    """Names of a file's tensors, after the header was found sound."""
    safetensors_header.check_safetensors(file)
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        names = json.loads(handle.read(length))
    if not isinstance(names, dict):
        raise DataError("not a safetensors file", where=str(file))
    return [name for name in names if name != "__metadata__"]
