"""Merge adapters into a single file in the layout of the model's authors, as ComfyUI and A1111 load it.

The base model is such a file, and the merged file has the same tensors in the same order of names. Where the
rows of each of diffusers' weights come from is found with diffusers' own conversion: it converts numbers of
rows instead of weights. Each weight is compared with its rows before it is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lorakit.adapters.formats import BaseWeights
from lorakit.adapters.tools.merge_plan import DeltasByTensor, add_deltas, plan_terms
from lorakit.adapters.tools.weighted import WeightedAdapter
from lorakit.core import output_paths, safetensors_header, storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import track_progress
from lorakit.core.tensor_files import TensorFiles, TensorLayout, write_in_parts
from lorakit.models import single_file
from lorakit.models.base_model import MODEL_INDEX
from lorakit.models.single_file import convert, latent_diffusion, layout

_ROW_BITS = 32  # of a tag: number of the tensor above, number of its row below
_TEXT_LAYER = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class _Rows:
    """Rows of a tensor of the file that are rows of one of diffusers' weights."""

    component: str
    tensor: str
    in_file: torch.Tensor
    in_weight: torch.Tensor


def merge_into_file(base: str, base_folder: Path, adapters: Sequence[WeightedAdapter], out: Path) -> int:
    """Write base model + adapters into the .safetensors file `out`; return the number of changed weights.

    `base` is a single file, `base_folder` its conversion to a diffusers folder. Tensors keep their precision.
    Raises ConfigError if an adapter does not fit, if it has a new token, which is a file of its own in such
    programs, and if a weight cannot be found in the file.
    """
    _check_request(adapters, out)
    file = Path(single_file.split_spec(base).file)
    base_weights = BaseWeights(base_folder)
    planned = plan_terms(base_weights, adapters)
    sources = TensorFiles([file])
    rows_of: dict[str, list[_Rows]] = {}
    for component, deltas in planned.items():
        for name, rows in _find_rows(sources, base_folder, component, deltas, str(file)):
            rows_of.setdefault(name, []).append(rows)
    header = safetensors_header.read_header(file)
    layouts = {
        name: TensorLayout(tuple(entry["shape"]), _dtype(entry["dtype"], f"{file}, {name}"))
        for name, entry in header.tensors.items()
    }
    tensors = _merged(sources, rows_of, base_weights, planned)
    write_in_parts(out, layouts, track_progress(tensors, "merging", len(layouts)), header.metadata)
    return sum(len(deltas) for deltas in planned.values())


def merge_folder_into_file(base_folder: Path, adapters: Sequence[WeightedAdapter], out: Path) -> int:
    """Write a diffusers folder + adapters as one .safetensors file; return the number of changed weights.

    Raises ConfigError for a base model whose authors' names are not known, and as `merge_into_file` does.
    """
    _check_request(adapters, out)
    base_weights = BaseWeights(base_folder)
    files = {
        name: TensorFiles(sorted(set(base_weights.files(name).values()))) for name in _components(base_folder)
    }

    def shapes_of(component: str) -> dict[str, TensorLayout]:
        return _layouts(base_weights, component)

    tensors = latent_diffusion.checkpoint_tensors(base_folder, shapes_of)
    planned = plan_terms(base_weights, adapters)

    def read(component: str, name: str) -> torch.Tensor:
        weight, terms = files[component].read(name), planned.get(component, {}).get(name)
        return add_deltas(weight, terms) if terms else weight

    values = ((tensor.name, tensor.value(read)) for tensor in tensors)
    layouts = {tensor.name: tensor.layout for tensor in tensors}
    write_in_parts(out, layouts, track_progress(values, "merging", len(layouts)), {"format": "pt"})
    return sum(len(deltas) for deltas in planned.values())


def _components(base_folder: Path) -> list[str]:
    return [folder.name for folder in sorted(base_folder.iterdir()) if any(folder.glob("*.safetensors"))]


def _layouts(base_weights: BaseWeights, component: str) -> dict[str, TensorLayout]:
    layouts = {}
    for name, file in base_weights.files(component).items():
        entry = safetensors_header.read_header(file).tensors[name]
        layouts[name] = TensorLayout(tuple(entry["shape"]), _dtype(entry["dtype"], f"{file}, {name}"))
    return layouts


def _check_request(adapters: Sequence[WeightedAdapter], out: Path) -> None:
    output_paths.check_output_path(out, "out")
    if out.exists():
        raise ConfigError("this file exists, so it is not replaced", where=str(out), remedy="give a new name")
    for weighted in adapters:
        if weighted.adapter.token:
            raise ConfigError(
                f"the new token {weighted.adapter.token} cannot be merged into a single file",
                where=str(weighted.adapter.path or "adapter"),
                remedy="merge into a folder; `lorakit export` writes the token as a file for programs",
            )


def _dtype(name: str, where: str) -> torch.dtype:
    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    known |= {"I64": torch.int64, "U8": torch.uint8, "I8": torch.int8}
    if name not in known:
        raise ConfigError(
            f"weights in {name} cannot be merged",
            where=where,
            remedy="use the fp16 or bf16 file of the model",
        )
    return known[name]


def _find_rows(
    sources: TensorFiles, base_folder: Path, component: str, deltas: DeltasByTensor, where: str
) -> Iterator[tuple[str, _Rows]]:
    """Yield the tensors of the file with their rows of each changed weight."""
    if component not in layout.DENOISERS:
        for tensor in deltas:
            yield _find_text_rows(sources, base_folder, component, tensor, where)
        return
    names = [name for name in sources.names if _is_denoiser(name)]
    tags = {
        name: _tags(number, sources.shape(name)) for number, name in enumerate(names) if sources.shape(name)
    }
    class_name = storage.read_json(base_folder / MODEL_INDEX)[component][1]
    model = convert.meta_model(class_name, base_folder / component)
    renamed = convert.rename_tensors(tags, class_name, model)
    for tensor in deltas:
        yield from _split_tags(renamed[tensor], names, component, tensor, where)


def _is_denoiser(name: str) -> bool:
    return not name.startswith((*layout.VAE_PREFIXES, *layout.TEXT_ENCODER_PREFIXES))


def _tags(number: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor whose values name the tensor and the row; it needs the memory of one column."""
    rows = (number << _ROW_BITS) + torch.arange(shape[0], dtype=torch.int64)
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def _split_tags(
    tags: torch.Tensor, names: Sequence[str], component: str, tensor: str, where: str
) -> Iterator[tuple[str, _Rows]]:
    """Yield the tensors of the file that a weight's tags name."""
    flat = tags.reshape(tags.shape[0], -1)
    column = flat[:, 0].contiguous()
    if tags.dtype != torch.int64 or not torch.equal(flat, column[:, None].expand_as(flat)):
        raise _not_found(component, tensor, where)
    numbers, rows = column >> _ROW_BITS, column & ((1 << _ROW_BITS) - 1)
    for number in numbers.unique().tolist():
        selected = torch.nonzero(numbers == number).flatten()
        yield names[number], _Rows(component, tensor, rows[selected], selected)


def _not_found(component: str, tensor: str, where: str) -> ConfigError:
    return ConfigError(
        f"{component}.{tensor} has no counterpart in the single file",
        where=where,
        remedy="merge into a folder: give --out a name without .safetensors",
    )


def _find_text_rows(
    sources: TensorFiles, base_folder: Path, component: str, tensor: str, where: str
) -> tuple[str, _Rows]:
    """Find the tensor of the file that has the values of a text encoder's weight."""
    weight = _read(BaseWeights(base_folder), component, tensor)
    for name, part in _text_candidates(sources, tensor):
        values = sources.read(name)
        height = weight.shape[0]
        start = 0 if part is None else part * height
        if values.shape[0] < start + height or values.shape[1:] != weight.shape[1:]:
            continue
        if torch.equal(values[start : start + height].to(weight.dtype), weight):
            rows = torch.arange(height)
            return name, _Rows(component, tensor, rows + start, rows)
    raise _not_found(component, tensor, where)


def _text_candidates(sources: TensorFiles, tensor: str) -> Iterator[tuple[str, int | None]]:
    """Yield tensors that a text encoder's weight can be, and the part of a fused one (query, key, value)."""
    match = _TEXT_LAYER.fullmatch(tensor)
    if match is None:
        return
    layer, part, kind = match.groups()
    ends: dict[str, int | None] = {f".encoder.layers.{layer}.{part}.{kind}": None}
    block = f".resblocks.{layer}"
    if part in latent_diffusion.OPEN_CLIP_LAYERS:
        ends[f"{block}.{latent_diffusion.OPEN_CLIP_LAYERS[part]}.{kind}"] = None
    for index, letter in enumerate("qkv"):
        if part == f"self_attn.{letter}_proj":
            ends[f"{block}.attn.in_proj_{kind}"] = index
    for name in sources.names:
        if name.startswith(layout.TEXT_ENCODER_PREFIXES):
            yield from ((name, number) for end, number in ends.items() if name.endswith(end))


def _read(base_weights: BaseWeights, component: str, tensor: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(base_weights.files(component)[tensor], framework="pt") as file:
        weight: torch.Tensor = file.get_tensor(tensor)
    return weight


def _merged(
    sources: TensorFiles,
    rows_of: Mapping[str, Sequence[_Rows]],
    base_weights: BaseWeights,
    planned: Mapping[str, DeltasByTensor],
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of the file, with the changed rows."""
    for name in sources.names:
        values = sources.read(name)
        for rows in rows_of.get(name, ()):
            weight = _read(base_weights, rows.component, rows.tensor)
            part = values[rows.in_file].reshape(len(rows.in_file), *weight.shape[1:])
            if not torch.equal(part.to(weight.dtype), weight[rows.in_weight]):
                raise _not_found(rows.component, rows.tensor, name)
            merged = add_deltas(weight, planned[rows.component][rows.tensor])[rows.in_weight]
            values[rows.in_file] = merged.reshape(values[rows.in_file].shape).to(values.dtype)
        yield name, values
