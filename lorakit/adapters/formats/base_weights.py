"""The weights of a base model, read one at a time from its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakit.core import safetensors_header
from lorakit.core.errors import ConfigError


@dataclass(frozen=True)
class WeightKey:
    """The place of one weight: the component's folder, and the tensor's name in its files."""

    component: str
    tensor: str


class BaseWeights:
    """Tensors of a diffusers folder by `<component>.<module>`; nothing is kept in memory."""

    def __init__(self, folder: Path, component_aliases: Mapping[str, str] | None = None) -> None:
        """`component_aliases` maps a component's name in the adapter to the folder that holds its weights."""
        if not folder.is_dir():
            raise ConfigError(
                "the base model must be a folder in the diffusers layout",
                where=str(folder),
                remedy="give such a folder",
            )
        self.folder = folder
        self._component_aliases = dict(component_aliases or {})
        self._files_by_component: dict[str, dict[str, Path]] = {}

    def files(self, component: str) -> dict[str, Path]:
        """Return the file of each tensor of a component; where there are several variants, the plain one."""
        if component not in self._files_by_component:
            files = sorted(
                (self.folder / component).glob("*.safetensors"), key=lambda file: file.name.count(".")
            )
            if not files:
                raise ConfigError(
                    f"the base model has no weights of {component}",
                    where=str(self.folder / component),
                    remedy="give the folder of the base model that the adapter was trained on",
                )
            file_by_tensor: dict[str, Path] = {}
            for file in files:
                for name in tensor_names(file):
                    file_by_tensor.setdefault(name, file)
            self._files_by_component[component] = file_by_tensor
        return self._files_by_component[component]

    def tensor_key(self, module: str) -> WeightKey:
        """Return the place of a module's weight; ConfigError if the base model has no such module."""
        component, path = module.split(".", 1)
        component = self._component_aliases.get(component, component)
        files = self.files(component)
        for name in (f"{path}.weight", f"{path.removeprefix('text_model.')}.weight"):
            if name in files:
                return WeightKey(component, name)
        raise ConfigError(
            f"the base model has no module {module}",
            where=str(self.folder),
            remedy="give the folder of the base model that the adapter was trained on",
        )

    def read_weight(self, module: str) -> torch.Tensor:
        """Return a module's weight, on the CPU, in its own precision."""
        from safetensors import safe_open

        key = self.tensor_key(module)
        with safe_open(self.files(key.component)[key.tensor], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(key.tensor)
        return tensor

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of a module's weight, from the file's header."""
        from safetensors import safe_open

        key = self.tensor_key(module)
        with safe_open(self.files(key.component)[key.tensor], framework="pt") as file:
            return tuple(file.get_slice(key.tensor).get_shape())


def tensor_names(file: Path) -> list[str]:
    """Return the names of a file's tensors; DataError for a damaged header."""
    return list(safetensors_header.read_header(file).tensors)
