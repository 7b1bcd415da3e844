"""Open a diffusers folder safely: every defect is found and named before gigabytes are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.core.storage import read_json
from lorakit.models.base_model import MODEL_INDEX, MODULAR_INDEX

if TYPE_CHECKING:
    import torch

LORAKIT_SETTINGS_FILE = "lorakit.json"
"""Optional, beside `model_index.json`: {"max_sequence_length": N} for a base trained with another length."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_WEIGHTLESS_CLASSES = (
    "Tokenizer",
    "Scheduler",
    "Processor",
    "FeatureExtractor",
    "TokenizersBackend",
    "Guidance",
)


def pipeline_name(folder: Path) -> str:
    """The pipeline class that a folder names; ConfigError when it is no diffusers folder."""
    name = _index(folder).get("_class_name")
    if not isinstance(name, str):
        raise ConfigError(
            "the model brings its own pipeline code, and foreign code is never run",
            where=str(folder / MODEL_INDEX),
            remedy="use a base whose model_index.json names a diffusers class",
        )
    return name


def load_pipeline(
    folder: Path,
    pipelines: Sequence[str],
    *,
    dtype: torch.dtype,
    only: Collection[str] | None,
    left_out: Collection[str],
    always: Collection[str] = (),
) -> Any:
    """Build the folder's pipeline; see `Family.load`."""
    import diffusers

    name = pipeline_name(folder)
    if name not in pipelines:
        raise ConfigError(f"a {name} is not one of {', '.join(pipelines)}", where=str(folder / MODEL_INDEX))
    kind, parts = getattr(diffusers, name), pipeline_components(folder)
    if missing := set(only or ()) - set(parts) - _config_components(kind):
        raise ConfigError(f"the model has no {', '.join(sorted(missing))}", where=str(folder))
    wanted = {part for part in parts if (part in only if only is not None else part not in left_out)}
    wanted |= {part for part in always if part in parts}
    for part in sorted(wanted):
        _check_component(folder / part, parts[part])
    settings = _settings(folder)
    _silence_progress_bars()
    try:
        loaded = {
            part: _load_network(folder / part, *parts[part], dtype)
            for part in wanted
            if has_weights(parts[part])
        }
        pipe = _assemble(kind, folder, loaded, {part: parts[part] for part in wanted})
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot load the model: {error}", where=str(folder)) from error
    pipe.lorakit_folder, pipe.lorakit_settings = folder, settings
    return pipe


def _config_components(kind: Any) -> set[str]:
    """Components that a modular pipeline makes by itself, such as its scheduler."""
    import diffusers

    return set(kind().config_component_names) if issubclass(kind, diffusers.ModularPipeline) else set()


def _assemble(kind: Any, folder: Path, loaded: dict[str, Any], wanted: dict[str, tuple[str, str]]) -> Any:
    """The pipeline around its networks, with tokenizers and the like from the folder."""
    import diffusers
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if issubclass(kind, diffusers.ModularPipeline):
        pipe = kind()
        others = {part: getattr(transformers, wanted[part][1]) for part in wanted.keys() - loaded.keys()}
        loaded |= {part: other.from_pretrained(folder / part, **options) for part, other in others.items()}
        pipe.update_components(**loaded)
        return pipe
    loaded |= {part: None for part in kind._get_signature_keys(kind)[0] if part not in wanted}
    if "safety_checker" in loaded and loaded["safety_checker"] is None:
        options["requires_safety_checker"] = False
    return kind.from_pretrained(folder, use_safetensors=True, **loaded, **options)


def read_component_config(pipe: Any, component: str) -> tuple[str, Mapping[str, Any]]:
    """Class name and configuration of a component that was not loaded, from its JSON."""
    config = read_json(pipe.lorakit_folder / component / "config.json")
    return config["_class_name"], config


def max_sequence_length(pipe: Any, default: int) -> int:
    """Text length a base was trained with: its own setting, or the pipeline's default."""
    return int(getattr(pipe, "lorakit_settings", {}).get("max_sequence_length", default))


def weight_shapes(folder: str | Path, component: str) -> dict[str, tuple[int, ...]]:
    """Shape of each module's weight in a component, from its configuration alone: no weights are read."""
    import diffusers
    import torch

    config = read_json(Path(folder) / component / "config.json")
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        raise ConfigError("unknown class of network", where=str(Path(folder) / component / "config.json"))
    with torch.device("meta"):
        network = kind.from_config(config)
    return {
        key[: -len(".weight")]: tuple(p.shape)
        for key, p in network.named_parameters()
        if key.endswith(".weight")
    }


def _index(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in (MODEL_INDEX, MODULAR_INDEX) if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(
            "not a diffusers model: model_index.json is missing",
            where=str(folder),
            remedy="give a folder as diffusers saves it (model_index.json and one folder a component)",
        )
    index = read_json(file)
    if not isinstance(index, dict):
        raise ConfigError(f"{file.name} must hold one JSON object", where=str(file))
    return index


def _settings(folder: Path) -> dict[str, Any]:
    if not (folder / LORAKIT_SETTINGS_FILE).is_file():
        return {}
    settings = read_json(folder / LORAKIT_SETTINGS_FILE)
    length = settings.get("max_sequence_length", 1) if isinstance(settings, dict) else None
    if not isinstance(length, int) or length < 1:
        raise ConfigError(
            "max_sequence_length must be a positive whole number", where=str(folder / LORAKIT_SETTINGS_FILE)
        )
    return dict(settings)


def pipeline_components(folder: Path) -> dict[str, tuple[str, str]]:
    """Components present in the folder as (library, class); absent optional ones are [null, null]."""
    parts = {}
    for part, value in _index(folder).items():
        if part.startswith("_") or not isinstance(value, list):
            continue
        if len(value) == 3 and isinstance(value[2], dict):  # a modular one, which may lie in another model
            value = value[2].get("type_hint") if (folder / part).is_dir() else None
        # settings are here too, and one of them may be a list of two numbers
        if value and [type(v) for v in value] == [str, str]:
            parts[part] = (value[0], value[1])
    return parts


def has_weights(part: tuple[str, str]) -> bool:
    return not any(word in part[1] for word in _WEIGHTLESS_CLASSES)


def _check_component(path: Path, part: tuple[str, str]) -> None:
    """Refuse a component that is absent, pickled, half downloaded or made of code."""
    if not path.is_dir():
        raise ConfigError(
            "a component's folder is missing", where=str(path), remedy="download the model again, whole"
        )
    if code := next(path.glob("*.py"), None):
        raise ConfigError("the model brings its own code, and foreign code is never run", where=str(code))
    if not has_weights(part):
        return
    files = {file.name for file in path.iterdir()}
    if not any(name.endswith(".safetensors") for name in files):
        pickled = any(name.endswith(_PICKLED) for name in files)
        message = "only pickled weights, which are never opened" if pickled else "the weights are missing"
        raise ConfigError(message, where=str(path), remedy="use a copy of the model with .safetensors files")
    for name in sorted(files):
        if name.endswith(".safetensors.index.json"):
            shards = set(read_json(path / name).get("weight_map", {}).values())
            if absent := sorted(shards - files):
                raise ConfigError(
                    f"{len(absent)} of {len(shards)} weight files are missing, first {absent[0]}",
                    where=str(path),
                    remedy="download the model again, whole",
                )


def _silence_progress_bars() -> None:
    """Progress is shown by lorakit itself; the libraries would draw a bar for every component."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # warns at every picture that guiders are experimental
    diffusers.utils.logging.get_logger("diffusers.guiders.guider_utils").setLevel("ERROR")


def _variant(path: Path) -> str | None:
    """`fp16` for a folder that holds only model.fp16.safetensors; None for plain names."""
    stems = [file.name.split(".") for file in sorted(path.glob("*.safetensors"))]
    if any(len(stem) == 2 for stem in stems):
        return None
    return stems[0][1].split("-")[0]


def _load_network(path: Path, library: str, class_name: str, dtype: torch.dtype) -> torch.nn.Module:
    """Load one network, complete: the libraries fill missing tensors with random numbers and only warn."""
    import diffusers
    import transformers

    if library == "diffusers":
        kind, options = getattr(diffusers, class_name, None), {"torch_dtype": dtype}
    else:  # transformers, and diffusers' own pipeline modules such as stable_diffusion's safety checker
        source = transformers if library == "transformers" else getattr(diffusers.pipelines, library, None)
        kind, options = getattr(source, class_name, None), {"dtype": dtype}
    if kind is None:
        raise ConfigError(
            f"unknown class {library}.{class_name}", where=str(path), remedy="use a published model"
        )
    model, info = kind.from_pretrained(
        path,
        local_files_only=True,
        use_safetensors=True,
        variant=_variant(path),
        output_loading_info=True,
        **options,
    )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{len(missing)} tensors are missing from the weights, first {missing[0]}",
            where=str(path),
            remedy="download the model again, whole",
        )
    frozen: torch.nn.Module = model.eval().requires_grad_(False)
    return frozen
