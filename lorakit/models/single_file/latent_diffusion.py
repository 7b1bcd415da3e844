"""The single checkpoint of a U-Net pipeline in its authors' names (Stable Diffusion 1.x and XL).

The names are those of https://github.com/CompVis/latent-diffusion and, for the second text encoder of XL, of
open_clip. They are checked with diffusers' own conversion in the other direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.core.tensor_files import TensorLayout
from lorakit.models.single_file import convert

if TYPE_CHECKING:
    import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
"""Parts of a text encoder's layer by open_clip's names."""
_OPEN_CLIP_OUTER = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_TEXT_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
Shapes = Mapping[str, TensorLayout]


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of the checkpoint: the tensors of a component that it consists of, joined or transposed."""

    name: str
    component: str
    tensors: tuple[str, ...]
    layout: TensorLayout
    is_transposed: bool = False

    def value(self, read: Callable[[str, str], torch.Tensor]) -> torch.Tensor:
        """Return the tensor; `read` returns one by component and name."""
        import torch

        parts = [read(self.component, name) for name in self.tensors]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        return (value.T if self.is_transposed else value).reshape(self.layout.shape).contiguous()


def checkpoint_tensors(folder: Path, shapes_of: Callable[[str], Shapes]) -> list[CheckpointTensor]:
    """Return all tensors of the checkpoint of a diffusers folder; `shapes_of` has those of a component.

    Raises ConfigError for a pipeline whose authors' names are not known.
    """
    index = storage.read_json(folder / "model_index.json")
    classes = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[1]}
    _check_classes(classes, folder)
    is_xl = "text_encoder_2" in classes
    unet_config = storage.read_json(folder / "unet" / "config.json", allow_infinity=True)
    tensors = list(_unet_tensors(unet_config, shapes_of("unet"), folder))
    tensors += _vae_tensors(shapes_of("vae"))
    prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
    tensors += _clip_tensors("text_encoder", shapes_of("text_encoder"), prefix)
    if is_xl:
        shapes = shapes_of("text_encoder_2")
        tensors += _open_clip_tensors("text_encoder_2", shapes, "conditioner.embedders.1.model.")
    return tensors


def _check_classes(classes: Mapping[str, str], folder: Path) -> None:
    expected = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    optional = {"text_encoder_2": "CLIPTextModelWithProjection"}
    wrong = [name for name, kind in expected.items() if classes.get(name) != kind]
    wrong += [name for name, kind in optional.items() if classes.get(name, kind) != kind]
    if not wrong:
        config = storage.read_json(folder / "text_encoder" / "config.json", allow_infinity=True)
        if "text_encoder_2" in classes or config.get("hidden_act", "quick_gelu") != "gelu":
            return
        raise _unknown_names("its text encoder is open_clip's, and folders lack its last layer", folder)
    kinds = ", ".join(f"{name}: {classes.get(name, 'missing')}" for name in wrong)
    raise _unknown_names(f"the names of all of its tensors are known for U-Nets only ({kinds})", folder)


def _unknown_names(reason: str, folder: Path) -> ConfigError:
    return ConfigError(
        f"this base model cannot be written as a single file: {reason}",
        where=str(folder),
        remedy="give the authors' own single file as the base model, or write a folder: --out DIR",
    )


def _unet_tensors(config: Mapping[str, Any], shapes: Shapes, folder: Path) -> Iterator[CheckpointTensor]:
    names = {name: unet_name(name, config) for name in shapes}
    _check_by_conversion(names, shapes, folder)
    for name, layout in shapes.items():
        yield CheckpointTensor(f"model.diffusion_model.{names[name]}", "unet", (name,), layout)


def _check_by_conversion(names: Mapping[str, str], shapes: Shapes, folder: Path) -> None:
    """Raise ConfigError unless diffusers' own table turns the names back."""
    import torch

    model = convert.meta_model("UNet2DConditionModel", folder / "unet")
    written = {
        f"model.diffusion_model.{names[name]}": torch.empty(layout.shape, device="meta")
        for name, layout in shapes.items()
    }
    try:
        renamed = convert.rename_tensors(written, "UNet2DConditionModel", model)
    except (KeyError, IndexError, ValueError, RuntimeError, AttributeError):
        renamed = {}
    if {name: tuple(tensor.shape) for name, tensor in renamed.items()} != {
        name: layout.shape for name, layout in shapes.items()
    }:
        raise _unknown_names("its U-Net has other blocks than Stable Diffusion's", folder)


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the authors' name of a U-Net's tensor: blocks are counted through all levels."""
    layers = int(config.get("layers_per_block", 2)) + 1
    if match := _BLOCK.fullmatch(name):
        direction, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * layers}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            crossed = "CrossAttn" in str(config["up_block_types"][level])
            return f"output_blocks.{(level + 1) * layers - 1}.{2 if crossed else 1}.{rest}"
        first = 1 if direction == "down" else 0
        block = f"{'input' if first else 'output'}_blocks.{level * layers + number + first}"
    elif match := _MIDDLE.fullmatch(name):
        kind, rest = match[1], match[3]
        return (
            f"middle_block.1.{rest}"
            if kind == "attentions"
            else (f"middle_block.{2 * int(match[2])}.{_replaced(rest, _RESNET)}")
        )
    else:
        return _replaced(name, _OUTER)
    return f"{block}.1.{rest}" if kind == "attentions" else f"{block}.0.{_replaced(rest, _RESNET)}"


def _replaced(name: str, table: Mapping[str, str]) -> str:
    path, _, end = name.rpartition(".")
    return f"{table.get(path, path)}.{end}"


def _vae_tensors(shapes: Shapes) -> Iterator[CheckpointTensor]:
    levels = 1 + max(
        int(match[1]) for name in shapes if (match := re.match(r"decoder\.up_blocks\.(\d+)", name))
    )
    for name, layout in shapes.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d+)\.resnets\.(\d+)",
            lambda match: f"up.{levels - 1 - int(match[1])}.block.{match[2]}",
            new,
        )
        new = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0",
            lambda match: f"up.{levels - 1 - int(match[1])}.upsample",
            new,
        )
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if match := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.+)", new):
            new = f"{match[1]}.mid.attn_1.{_replaced(match[2], _VAE_ATTENTION)}"
            if len(layout.shape) == 2:  # the authors' are 1 x 1 convolutions
                layout = TensorLayout((*layout.shape, 1, 1), layout.dtype)
        yield CheckpointTensor(f"first_stage_model.{new}", "vae", (name,), layout)


def _clip_tensors(component: str, shapes: Shapes, prefix: str) -> Iterator[CheckpointTensor]:
    for name, layout in shapes.items():
        full = name if name.startswith("text_model.") else f"text_model.{name}"
        yield CheckpointTensor(prefix + full, component, (name,), layout)


def _open_clip_tensors(component: str, shapes: Shapes, prefix: str) -> Iterator[CheckpointTensor]:
    """Yield the tensors of open_clip: query, key and value are one, the projection is transposed."""
    fused: dict[str, list[str]] = {}
    for name in sorted(shapes):
        short, layout = name.removeprefix("text_model."), shapes[name]
        if short in _OPEN_CLIP_OUTER:
            transposed = short == "text_projection.weight"
            shape = layout.shape[::-1] if transposed else layout.shape
            yield CheckpointTensor(
                prefix + _OPEN_CLIP_OUTER[short],
                component,
                (name,),
                TensorLayout(shape, layout.dtype),
                transposed,
            )
        elif match := _TEXT_LAYER.fullmatch(short):
            layer, part, end = match.groups()
            block = f"{prefix}transformer.resblocks.{layer}"
            if part in OPEN_CLIP_LAYERS:
                yield CheckpointTensor(f"{block}.{OPEN_CLIP_LAYERS[part]}.{end}", component, (name,), layout)
            else:
                fused.setdefault(f"{block}.attn.in_proj_{end}", []).append(name)
    for name, members in fused.items():
        yield _fused(name, component, members, shapes)


def _fused(name: str, component: str, members: Sequence[str], shapes: Shapes) -> CheckpointTensor:
    ordered = sorted(members, key=lambda member: "qkv".index(member.split("self_attn.")[1][0]))
    layout = shapes[ordered[0]]
    shape = (sum(shapes[member].shape[0] for member in ordered), *layout.shape[1:])
    return CheckpointTensor(name, component, tuple(ordered), TensorLayout(shape, layout.dtype))
