"""Conversion of a checkpoint's tensors to one component of a pipeline, by diffusers' own tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models.single_file import layout

if TYPE_CHECKING:
    import torch


def convert_component(
    tensors: Mapping[str, torch.Tensor], name: str, class_name: str, settings: Path, out: Path, where: str
) -> None:
    """Write `out/name`: the network of class `class_name` with the settings in `settings/name`.

    Raises ConfigError if a tensor of the network is not in the file, or one of the file not in the network.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()  # lorakit shows its own
    own_tensors = {key: _upcast_fp8(value) for key, value in layout.component_tensors(tensors, name).items()}
    try:
        if name in (*layout.DENOISERS, "vae"):
            model = _load_renamed(own_tensors, class_name, settings / name)
        else:
            model = _text_encoder(own_tensors, name, class_name, settings)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the {name} in the file does not fit the settings of {settings.name}: {error}",
            where=where,
            remedy="add a diffusers folder or hub id of exactly this model: FILE.safetensors@PARTS",
        ) from error
    model.save_pretrained(out / name, safe_serialization=True)
    for file in (out / name).iterdir():
        storage.fsync_file(file)


def _upcast_fp8(value: torch.Tensor) -> torch.Tensor:
    """Convert 8-bit floating point, which supports no computation, to bfloat16."""
    import torch

    return value.to(torch.bfloat16) if value.is_floating_point() and value.element_size() == 1 else value


def meta_model(class_name: str, settings: Path) -> Any:
    """Return a network of diffusers without weights, with the settings in a folder."""
    import diffusers
    import torch

    config = storage.read_json(settings / "config.json", allow_infinity=True)
    with torch.device("meta"):
        return getattr(diffusers, class_name).from_config(config)


def rename_tensors(tensors: dict[str, torch.Tensor], class_name: str, model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint under diffusers' names, split and reordered by its own tables."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if tensors.keys() == model.state_dict().keys():
        return tensors
    mapping = SINGLE_FILE_LOADABLE_CLASSES[class_name]["checkpoint_mapping_fn"]
    renamed: dict[str, torch.Tensor] = mapping(checkpoint=dict(tensors), config=model.config)
    return renamed


def _load_renamed(tensors: dict[str, torch.Tensor], class_name: str, settings: Path) -> Any:
    model = meta_model(class_name, settings)
    tensors = rename_tensors(tensors, class_name, model)
    missing, unknown = model.load_state_dict(tensors, strict=False, assign=True)
    if missing or unknown:
        raise ValueError(
            f"{len(missing)} tensors are missing and {len(unknown)} are unknown,"
            f" first {', '.join([*missing, *unknown][:3])}"
        )
    return model


def _text_encoder(tensors: dict[str, torch.Tensor], name: str, class_name: str, settings: Path) -> Any:
    import transformers
    from diffusers.loaders import single_file_utils as tables

    make = (
        tables.create_diffusers_t5_model_from_checkpoint
        if class_name == "T5EncoderModel"
        else tables.create_diffusers_clip_model_from_ldm
    )
    model = make(
        getattr(transformers, class_name),
        checkpoint=tensors,
        subfolder=name,
        config=str(settings),
        local_files_only=True,
    )
    model.tie_weights()  # a tensor with two names is stored once
    if missing := [key for key, value in model.named_parameters() if value.is_meta]:
        raise ValueError(f"{len(missing)} tensors are missing, first {', '.join(missing[:3])}")
    return model
