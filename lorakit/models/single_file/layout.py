"""Contents of a checkpoint file, from the names and shapes in its header; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.core import storage
from lorakit.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

TensorShapes = Mapping[str, "torch.Tensor"]
"""The tensors of a file by name, on the meta device: shapes without data."""

DENOISERS = ("unet", "transformer")
VAE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.")
PICKLE_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth")
_QUANTIZED_SUFFIXES = (
    "scaled_fp8",
    ".scale_weight",
    ".weight_scale",
    ".absmax",
    ".quant_map",
    ".comfy_quant",
)
_CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; s = torch.load(sys.argv[1], '
    "map_location='cpu', weights_only=True); s = s.get('state_dict', s); save_file({k: v.clone() for k, v in "
    's.items() if torch.is_tensor(v)}, sys.argv[2])" OLD NEW.safetensors'
)


def read_tensor_shapes(file: Path, where: str) -> TensorShapes:
    """Read a checkpoint's header; ConfigError for pickled, damaged and quantized files."""
    import torch
    from safetensors import safe_open

    if not file.is_file():
        raise ConfigError("there is no such file", where=where, remedy="check the path")
    if file.suffix.lower() in PICKLE_SUFFIXES:
        remedy = f"use its .safetensors version, or convert the file if you trust it: {_CONVERT}"
        raise ConfigError("pickled files can run code and are never opened", where=where, remedy=remedy)
    smaller = "`memory: {quantize: nf4}` saves memory"
    if file.suffix.lower() == ".gguf":
        remedy = f"use the .safetensors file it was made from; {smaller}"
        raise ConfigError("quantized GGUF files cannot be trained on", where=where, remedy=remedy)
    storage.read_safetensors_metadata(file)  # raises for a damaged file
    with safe_open(file, "pt") as handle:
        shapes = {name: handle.get_slice(name).get_shape() for name in handle.keys()}  # noqa: SIM118
    if quantized := [name for name in shapes if name.endswith(_QUANTIZED_SUFFIXES)]:
        raise ConfigError(
            f"a quantized checkpoint cannot be trained on (it has {quantized[0]})",
            where=where,
            remedy=f"use the fp16 or bf16 checkpoint; {smaller}",
        )
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def default_repo(tensors: TensorShapes, where: str) -> str:
    """Return the hub id whose settings diffusers uses for a layout; ConfigError for an unknown layout."""
    from diffusers.loaders import single_file_utils as tables

    try:
        model_type = tables.infer_diffusers_model_type(tensors)
    except (KeyError, ValueError, RuntimeError, UnboundLocalError):  # unknown layouts
        model_type = "v1"
    if model_type == "v1" and tables.CHECKPOINT_KEY_NAMES["v1"] not in tensors:  # its default
        raise ConfigError(
            f"the checkpoint's layout is unknown; its first tensors are {', '.join(sorted(tensors)[:3])}",
            where=where,
            remedy="add a diffusers folder or hub id of the same model: FILE.safetensors@PARTS",
        )
    return str(tables.DIFFUSERS_DEFAULT_PIPELINE_PATHS[model_type]["pretrained_model_name_or_path"])


def has_component(tensors: TensorShapes, name: str, class_name: str) -> bool:
    """Return True if the file contains a component in a layout that diffusers converts."""
    from diffusers.loaders import single_file_utils as tables
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if name in DENOISERS:
        return class_name in SINGLE_FILE_LOADABLE_CLASSES
    if name == "vae":
        return class_name in SINGLE_FILE_LOADABLE_CLASSES and any(
            key.startswith(VAE_PREFIXES) for key in tensors
        )
    if class_name == "T5EncoderModel":
        return bool(tables.is_t5_in_single_file(tensors))
    return bool(tables.is_clip_model_in_single_file(type(class_name, (), {}), tensors))


def component_tensors(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return the tensors that include a component's."""
    if name == "vae":
        return {key: value for key, value in tensors.items() if key.startswith(VAE_PREFIXES)}
    if name in DENOISERS:
        return {
            key: value
            for key, value in tensors.items()
            if not key.startswith((*VAE_PREFIXES, *TEXT_ENCODER_PREFIXES))
        }
    return {key: value for key, value in tensors.items() if key.startswith(TEXT_ENCODER_PREFIXES)}
