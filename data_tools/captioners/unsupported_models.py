"""Models that cannot caption here: what a file or folder holds instead, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorakit.core import storage
from lorakit.core.errors import ConfigError, LorakitError

TAGS_FILE = "selected_tags.csv"
SUPPORTED = (
    "a folder or hub id of an image-to-text model of transformers, or of a WD tagger (safetensors or ONNX)"
)
CAPTIONER = "captioner"
_SERVER = "start it in llama.cpp, LM Studio, Ollama or vLLM, and give --server http://127.0.0.1:8080/v1"
_LFS_POINTER = b"version https://git-lfs"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CONVERT = (
    "use a repository with *.safetensors, or convert it with transformers: load it, then "
    "`model.save_pretrained(FOLDER)`; pickles are never loaded here"
)
# By extension: what the file is, and what to do.
_FILE_KINDS = {
    ".gguf": ("a GGUF model, which llama.cpp runs", f"{_SERVER}; it needs its mmproj file to see images"),
    ".llamafile": ("a llamafile", _SERVER),
    ".onnx": ("a file in ONNX", f"give its folder, which needs model.onnx and {TAGS_FILE}"),
    ".safetensors": ("one file of weights", "give its folder, which needs config.json too"),
    ".h5": ("a model of Keras", "use a WD tagger v3, which has safetensors"),
    ".keras": ("a model of Keras", "use a WD tagger v3, which has safetensors"),
    ".pb": ("a model of TensorFlow", "use a WD tagger v3, which has safetensors"),
    ".tflite": ("a model of TensorFlow", "use a WD tagger v3, which has safetensors"),
    ".msgpack": ("a model of Flax", "use a repository with *.safetensors"),
    ".mlmodel": ("a model of Core ML", "use a repository with *.safetensors"),
    **dict.fromkeys(_PICKLES, ("weights in a pickle, which could run any code", _CONVERT)),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z"), ("an archive", "unpack it, and give the folder")),
}
_TEXT_MODELS = re.compile(
    r"llama|qwen[\d_]*$|qwen\d_moe|mistral$|mixtral|gemma\d?$|phi\d?$|gpt|bert|t5$|bart|falcon|deepseek_v\d|opt$|bloom"
)
_CLIP_MODELS = re.compile(r"(?:clip|siglip|align|altclip|chinese_clip|metaclip)\w*$")
_IMAGE_CLASSES = re.compile(r"(?:vit|swin|convnext|resnet|beit|deit|dino\w*|efficientnet|segformer|detr)\w*$")


def _use_supported(role: str) -> str:
    others = f"a folder or hub id (owner/name) of a {role} of transformers, with *.safetensors"
    return f"give {SUPPORTED if role == CAPTIONER else others}"


def file_error(file: Path, role: str) -> ConfigError:
    """Return the error for a file that was given as a model."""
    what, remedy = _FILE_KINDS.get(
        file.suffix.lower(), ("a file, not a model's folder", _use_supported(role))
    )
    if file.suffix.lower() == ".onnx" and (file.parent / TAGS_FILE).is_file():
        remedy = f"give its folder: --model {file.parent}"
    return ConfigError(f"this is {what}", where=f"{role}: {file}", remedy=remedy)


def folder_error(folder: Path, config: Mapping[str, object], role: str = CAPTIONER) -> ConfigError:
    """Return the error for a folder in which no supported model was found: what is there instead."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.name.lower() for path in files}
    where, suffixes = str(folder), {path.suffix.lower() for path in files}
    use_supported = _use_supported(role)
    if "adapter_config.json" in names:
        return ConfigError(f"an adapter{_base_of(folder)}, not a whole model", where=where, remedy=_MERGE)
    if "model_index.json" in names:
        message = "a base model that generates images, not one that describes them"
        return ConfigError(message, where=where, remedy=use_supported)
    if "model.safetensors.index.json" in names or config:
        return _weights_error(folder, suffixes)
    if ".onnx" in suffixes:
        message = f"ONNX files without {TAGS_FILE}: only WD taggers are supported in ONNX"
        remedy = (
            f"use the repository with safetensors, or put the tagger's model.onnx and {TAGS_FILE} together"
        )
        return ConfigError(message, where=where, remedy=remedy)
    for suffix, (what, remedy) in _FILE_KINDS.items():
        if suffix in suffixes:
            message = f"no config.json: the folder holds {what}"
            return ConfigError(message, where=where, remedy=remedy)
    listed = ", ".join(path.name for path in files[:5]) or "nothing"
    return ConfigError(
        f"not a model's folder: it has no config.json, but {listed}", where=where, remedy=use_supported
    )


_MERGE = (
    "merge it into its base model with peft (`merge_and_unload`, `save_pretrained`), and give that folder"
)


def check_weights(folder: Path, config: Mapping[str, object], role: str = CAPTIONER) -> None:
    """Raise ConfigError for a folder with config.json whose weights are missing, partial or of no use."""
    if (folder / "adapter_config.json").is_file():
        raise folder_error(folder, config, role)
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise folder_error(folder, config, role)
    for file in weights:
        with open(file, "rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                remedy = "download it with `git lfs pull`, or give the hub id"
                raise ConfigError(
                    "a pointer of Git LFS instead of the weights", where=str(file), remedy=remedy
                )
    missing = [name for name in _indexed_files(folder) if not (folder / name).is_file()]
    if missing:
        message = f"the model is not complete: {len(missing)} files are missing, for example {missing[0]}"
        raise ConfigError(message, where=str(folder), remedy="download the model again")


def model_type_error(name: str, model_type: str, config: Mapping[str, object]) -> ConfigError:
    """Return the error for a model of transformers that does not turn an image into text."""
    where, remedy = f"captioner: {name}", "use an image-text-to-text model that is part of transformers"
    architectures = config.get("architectures")
    kind = ", ".join(map(str, architectures)) if isinstance(architectures, Sequence) else model_type
    if "auto_map" in config:
        message = (
            f"{model_type} is not an image-text-to-text model of transformers: it brings code of its own"
        )
        remedy = f"code of a model is never run here; {_SERVER}, or use a model that is part of transformers"
    elif _CLIP_MODELS.match(model_type):
        message = f"{model_type} is not an image-text-to-text model: it compares images with texts"
        remedy = "CLIP-interrogator takes its sentence from BLIP: use Salesforce/blip-image-captioning-large"
    elif _TEXT_MODELS.match(model_type):
        message = f"{model_type} is not an image-text-to-text model: it reads text only"
    elif _IMAGE_CLASSES.match(model_type):
        message = f"{model_type} is not an image-text-to-text model: it classifies images"
        remedy = "for tags, use a WD tagger v3"
    else:
        message = f"{model_type} is not an image-text-to-text model ({kind})"
    return ConfigError(message, where=where, remedy=remedy)


def check_architecture(name: str, config: Mapping[str, object]) -> None:
    """Raise ConfigError for weights of a captioning family that were trained for another task."""
    architectures = config.get("architectures")
    first = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if re.search(
        r"ImageTextRetrieval|ForQuestionAnswering|ForSequenceClassification|ForTokenClassification", first
    ):
        message = f"{first} is trained for another task than captions"
        remedy = "use the model for captions, for example Salesforce/blip-image-captioning-large"
        raise ConfigError(message, where=f"captioner: {name}", remedy=remedy)


def _weights_error(folder: Path, suffixes: set[str]) -> ConfigError:
    pickles = sorted(suffixes & set(_PICKLES))
    if pickles:
        message = (
            f"the model has no safetensors weights, only {', '.join(f'*{suffix}' for suffix in pickles)}"
        )
        return ConfigError(message, where=str(folder), remedy=_CONVERT)
    for suffix in (".gguf", ".onnx", ".h5", ".pb", ".msgpack"):
        if suffix in suffixes:
            what, remedy = _FILE_KINDS[suffix]
            message = f"the model has no safetensors weights; the folder holds {what}"
            return ConfigError(message, where=str(folder), remedy=remedy)
    message = "the model has no safetensors weights: config.json is there, weights are not"
    return ConfigError(message, where=str(folder), remedy="download the model again, all of its files")


def _indexed_files(folder: Path) -> list[str]:
    try:
        index = storage.read_json(folder / "model.safetensors.index.json")
        return sorted(set(index["weight_map"].values()))
    except (LorakitError, OSError, KeyError, TypeError, AttributeError):
        return []


def _base_of(folder: Path) -> str:
    try:
        base = storage.read_json(folder / "adapter_config.json")["base_model_name_or_path"]
        return f" of {base}" if isinstance(base, str) and base else ""
    except (LorakitError, OSError, KeyError, TypeError):
        return ""
