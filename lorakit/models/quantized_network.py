"""A denoiser loaded with quantized layers, one tensor at a time: it never exists in full precision.

The network is built without weights. Its layers are quantized from the files of the base model once, into the
store on disk, and used from there; the other tensors are read from the base model at every start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.core.tensor_files import TensorFiles, TensorLayout
from lorakit.models import base_model
from lorakit.models.families import pipeline_folder
from lorakit.models.families.pipeline_folder import ComponentClass
from lorakit.models.memory import quantize, quantized_layers, quantized_store
from lorakit.models.memory.quantized_layers import QuantizedLinear

CODES_VERSION = 1
"""To be raised with every change of the codes or of the layers that are quantized."""


@dataclass(frozen=True)
class QuantizedLoader:
    """Loads networks of a base model with quantized layers; see `pipeline_folder.NetworkLoader`."""

    base_folder: Path
    quantization: str
    compute_dtype: torch.dtype
    device: torch.device
    """The device that computes; the network is loaded into host memory."""

    def __call__(self, path: Path, component_class: ComponentClass, dtype: torch.dtype) -> nn.Module:
        """Load one component: tensors that are not quantized get `dtype`. Raises ConfigError as `load`."""
        files = _weight_files(path)
        if files is None or component_class.library != "diffusers":
            return self._quantize_after_loading(path, component_class, dtype)
        network = _build_without_weights(path, component_class, dtype)
        sources = _Sources(network, files, path)
        names = quantize.quantizable_layers(network)
        layers = {name: self._layer(network, name) for name in names}
        sources.check_complete()
        codes = self._codes(path.name, layers, sources)
        for name, layer in layers.items():
            layer.set_codes({tensor: codes[f"{name}.{tensor}"] for tensor in layer.code_names})
            quantize.replace_layer(network, name, layer)
        for name, tensor in network.state_dict(keep_vars=True).items():
            if name.rpartition(".")[0] not in layers:
                _set_tensor(network, name, sources.read(name, dtype), tensor)
            elif name not in codes:
                _set_tensor(network, name, sources.read(name).to(self.compute_dtype), tensor)
        return network.eval().requires_grad_(False)

    def _layer(self, network: nn.Module, name: str) -> QuantizedLinear:
        linear = network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return quantized_layers.LAYERS[self.quantization](linear, self.compute_dtype, self.device)

    def _codes(
        self, component: str, layers: Mapping[str, QuantizedLinear], sources: _Sources
    ) -> dict[str, torch.Tensor]:
        """Return the codes of all layers by their names in the network."""
        layouts = {
            f"{name}.{key}": TensorLayout(tuple(tensor.shape), tensor.dtype)
            for name, layer in layers.items()
            for key, tensor in layer.codes().items()
        }

        def compute() -> Iterator[tuple[str, torch.Tensor]]:
            in_file_order = sorted(layers, key=lambda name: sources.position(f"{name}.weight"))
            label = f"quantizing {component} to {self.quantization}"
            for name in track_progress(in_file_order, label, len(layers)):
                encoded = layers[name].encode(sources.read(f"{name}.weight"))
                yield from ((f"{name}.{key}", tensor) for key, tensor in encoded.items())

        key = {
            "component": base_model.component_hashes(self.base_folder)[component],
            "quantization": self.quantization,
            "version": CODES_VERSION,
        }
        return quantized_store.stored_tensors(base_model.cache_folder() / "quantized", key, layouts, compute)

    def _quantize_after_loading(
        self, path: Path, component_class: ComponentClass, dtype: torch.dtype
    ) -> nn.Module:
        """Load a network of another library in full, in float32 as its tensors are read otherwise."""
        network = pipeline_folder.load_network(path, component_class, torch.float32)
        quantize.quantize_linear_layers(network, self.quantization, self.device, self.compute_dtype)
        return network.to(dtype)


class _Sources:
    """The tensors of a network's files, by their names in the network."""

    def __init__(self, network: Any, files: list[Path], path: Path) -> None:
        self._files, self._path = TensorFiles(files), path
        self._stored_names = {name: name for name in self._files.names}
        network._fix_state_dict_keys_on_load(self._stored_names)  # diffusers: names of old attention blocks
        self._kept_in_float32 = set(network._keep_in_fp32_modules or ())
        self._shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self._files.names)}

    def position(self, name: str) -> int:
        """Return the place of a tensor among all, in the order in which they are read fastest."""
        return self._positions[self._stored_names[name]]

    def check_complete(self) -> None:
        """Raise ConfigError if tensors of the network are not in the files, or have another shape."""
        if missing := sorted(self._shapes.keys() - self._stored_names):
            message = f"{len(missing)} tensors are missing from the weights, first {missing[0]}"
        elif wrong := [name for name in self._shapes if self._stored_shape(name) != self._shapes[name]]:
            message = (
                f"{len(wrong)} tensors do not have the shape of the network, first {wrong[0]}:"
                f" {self._stored_shape(wrong[0])} instead of {self._shapes[wrong[0]]}"
            )
        else:
            return
        raise ConfigError(message, where=str(self._path), remedy="download the whole model again")

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._stored_names[name])

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read a tensor, as it is or with its fractions in `dtype`, as diffusers does."""
        tensor = self._files.read(self._stored_names[name])
        if dtype is None or not tensor.is_floating_point():
            return tensor
        is_kept = not self._kept_in_float32.isdisjoint(name.split("."))
        return tensor.to(torch.float32 if is_kept else dtype)


def _weight_files(path: Path) -> list[Path] | None:
    """Return the files of a network as diffusers finds them: those of an index, or one; None without any."""
    variant = pipeline_folder.file_variant(path)
    ending = f".{variant}" if variant else ""
    index = path / f"diffusion_pytorch_model.safetensors.index{ending}.json"
    if index.is_file():
        names = set(storage.read_json(index).get("weight_map", {}).values())
        return [path / name for name in sorted(names)]
    file = path / f"diffusion_pytorch_model{ending}.safetensors"
    return [file] if file.is_file() else None


def _build_without_weights(path: Path, component_class: ComponentClass, dtype: torch.dtype) -> nn.Module:
    """Build a diffusers network with parameters on the meta device; what its code computes is real."""
    import accelerate
    import diffusers

    network_class: Any = getattr(diffusers, component_class.class_name, None)
    if network_class is None:
        raise ConfigError(
            f"unknown class diffusers.{component_class.class_name}",
            where=str(path),
            remedy="use a published model",
        )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # of computed buffers, as in `from_pretrained`
    try:
        with accelerate.init_empty_weights():
            network: nn.Module = network_class.from_config(
                network_class.load_config(path, local_files_only=True)
            )
    finally:
        torch.set_default_dtype(before)
    return network


def _set_tensor(network: nn.Module, name: str, value: torch.Tensor, replaced: torch.Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    owner = network.get_submodule(parent)
    is_parameter = isinstance(replaced, nn.Parameter)
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)
