"""Load diffusers folders safely: every defect is reported before gigabytes are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError
from lorakit.core.storage import read_json
from lorakit.models.base_model import MODEL_INDEX, MODULAR_INDEX
from lorakit.models.families.variants import check_variant, own_pipeline

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


@dataclass(frozen=True)
class ComponentConfig:
    """Class and configuration of one component, as its `config.json` states them."""

    class_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class ComponentClass:
    """Class of one component, as `model_index.json` states it."""

    library: str
    class_name: str

    @property
    def has_weights(self) -> bool:
        """True for networks; False for tokenizers, schedulers and the like."""
        return not any(word in self.class_name for word in _WEIGHTLESS_CLASSES)


NetworkLoader = Callable[[Path, ComponentClass, "torch.dtype"], "torch.nn.Module"]
"""Loads the network in a component's folder, frozen, in evaluation mode and with a data type."""


def pipeline_name(folder: Path) -> str:
    """Read the pipeline class of a folder; ConfigError if it is not a diffusers folder.

    For a variant whose network gets the same inputs (image to image) it is the family's own pipeline.
    """
    index = _read_index(folder)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ConfigError(
            "the model needs its own pipeline code, and foreign code is never run",
            where=str(folder / MODEL_INDEX),
            remedy="use a base model whose model_index.json names a diffusers class",
        )
    check_variant(folder, index)
    return own_pipeline(name)


def load_pipeline(
    folder: Path,
    pipelines: Sequence[str],
    *,
    dtype: torch.dtype,
    only: Collection[str] | None,
    optional: Collection[str],
    always_loaded: Collection[str] = (),
    loaders: Mapping[str, NetworkLoader] | None = None,
) -> Any:
    """Build the folder's pipeline; see `Family.load`."""
    import diffusers

    name = pipeline_name(folder)
    if name not in pipelines:
        raise ConfigError(f"a {name} is not one of {', '.join(pipelines)}", where=str(folder / MODEL_INDEX))
    pipeline_class, classes = getattr(diffusers, name), pipeline_components(folder)
    if missing := set(only or ()) - set(classes) - _config_components(pipeline_class):
        raise ConfigError(f"the model has no {', '.join(sorted(missing))}", where=str(folder))
    names = {name for name in classes if (name in only if only is not None else name not in optional)}
    names |= {name for name in always_loaded if name in classes}
    for component in sorted(names):
        _check_component(folder / component, classes[component])
    settings = _read_settings(folder)
    _silence_progress_bars()
    try:
        networks = {
            component: (loaders or {}).get(component, load_network)(
                folder / component, classes[component], dtype
            )
            for component in names
            if classes[component].has_weights
        }
        pipe = _assemble(pipeline_class, folder, networks, {name: classes[name] for name in names})
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise ConfigError(f"cannot load the model: {error}", where=str(folder)) from error
    pipe.lorakit_folder, pipe.lorakit_settings = folder, settings
    return pipe


def _config_components(pipeline_class: Any) -> set[str]:
    """Return the components that a modular pipeline builds by itself, such as its scheduler."""
    import diffusers

    if not issubclass(pipeline_class, diffusers.ModularPipeline):
        return set()
    return set(pipeline_class().config_component_names)


def _assemble(
    pipeline_class: Any, folder: Path, networks: dict[str, Any], classes: dict[str, ComponentClass]
) -> Any:
    """Build the pipeline around its networks, with tokenizers and the like from the folder."""
    import diffusers
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    components = dict(networks)
    if issubclass(pipeline_class, diffusers.ModularPipeline):
        pipe = pipeline_class()
        for name in classes.keys() - networks.keys():
            source = diffusers if classes[name].library == "diffusers" else transformers
            component_class = getattr(source, classes[name].class_name)
            components[name] = component_class.from_pretrained(folder / name, **options)
        pipe.update_components(**components)
        return pipe
    names = pipeline_class._get_signature_keys(pipeline_class)[0]
    components |= {name: None for name in names if name not in classes}
    if "safety_checker" in components and components["safety_checker"] is None:
        options["requires_safety_checker"] = False
    return pipeline_class.from_pretrained(folder, use_safetensors=True, **components, **options)


def read_component_config(pipe: Any, component: str) -> ComponentConfig:
    """Read class and configuration of a component that was not loaded, from its JSON."""
    config = read_json(pipe.lorakit_folder / component / "config.json", allow_infinity=True)
    return ComponentConfig(config["_class_name"], config)


def max_sequence_length(pipe: Any, default: int) -> int:
    """Return the text length that a base was trained with: its own setting, or the pipeline's default."""
    return int(getattr(pipe, "lorakit_settings", {}).get("max_sequence_length", default))


def _without_initial_values() -> Any:
    """Skip the filling of weights: without memory it does nothing, and loads torch's symbolic algebra."""
    import torch

    fills = {
        getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith("_") and name[0] != "_"
    }

    class WithoutFills(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            values = kwargs or {}
            if func in fills:
                return args[0] if args else values["tensor"]
            return func(*args, **values)

    return WithoutFills()


def build_meta_network(folder: str | Path, component: str) -> torch.nn.Module:
    """Build a component's network without weights (on the meta device), from its configuration alone.

    Raises ConfigError for a class that neither diffusers nor transformers has.
    """
    import diffusers
    import torch
    import transformers

    path = Path(folder) / component
    config = read_json(path / "config.json", allow_infinity=True)
    network: torch.nn.Module
    network_class = getattr(diffusers, str(config.get("_class_name")), None)
    if network_class is not None:
        with torch.device("meta"), _without_initial_values():
            network = network_class.from_config(config)
        return network
    architecture = next(iter(config.get("architectures") or ()), "")
    network_class = getattr(transformers, str(architecture), None)
    if network_class is not None:
        with torch.device("meta"), _without_initial_values():
            network = network_class(network_class.config_class.from_pretrained(path))
        return network
    raise ConfigError("the network's class is unknown to diffusers", where=str(path / "config.json"))


def weight_shapes(folder: str | Path, component: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each module's weight in a component, from its configuration alone."""
    network = build_meta_network(folder, component)
    return {
        key[: -len(".weight")]: tuple(p.shape)
        for key, p in network.named_parameters()
        if key.endswith(".weight")
    }


def _read_index(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in (MODEL_INDEX, MODULAR_INDEX) if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(
            "not a diffusers model: model_index.json is missing",
            where=str(folder),
            remedy="name a folder as diffusers saves it (model_index.json and one folder per component)",
        )
    index = read_json(file)
    if not isinstance(index, dict):
        raise ConfigError(f"{file.name} must contain one JSON object", where=str(file))
    return index


def _read_settings(folder: Path) -> dict[str, Any]:
    if not (folder / LORAKIT_SETTINGS_FILE).is_file():
        return {}
    settings = read_json(folder / LORAKIT_SETTINGS_FILE)
    length = settings.get("max_sequence_length", 1) if isinstance(settings, dict) else None
    if not isinstance(length, int) or length < 1:
        raise ConfigError(
            "max_sequence_length must be a positive whole number", where=str(folder / LORAKIT_SETTINGS_FILE)
        )
    return dict(settings)


def pipeline_components(folder: Path) -> dict[str, ComponentClass]:
    """Return the class of each component in the folder; absent optional ones (null) are left out."""
    classes = {}
    for name, value in _read_index(folder).items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        if len(value) == 3 and isinstance(value[2], dict):  # modular: it may be in another model's folder
            value = value[2].get("type_hint") if (folder / name).is_dir() else None
        # settings are here too, and one of them may be a list of two numbers
        if value and [type(v) for v in value] == [str, str]:
            classes[name] = ComponentClass(value[0], value[1])
    return classes


def _check_component(path: Path, component_class: ComponentClass) -> None:
    """Raise ConfigError for a component that is absent, pickled, half downloaded or made of code."""
    if not path.is_dir():
        raise ConfigError(
            "a component's folder is missing", where=str(path), remedy="download the whole model again"
        )
    if code := next(path.glob("*.py"), None):
        raise ConfigError("the model contains its own code, and foreign code is never run", where=str(code))
    if not component_class.has_weights:
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
                    remedy="download the whole model again",
                )


def _silence_progress_bars() -> None:
    """Switch off the libraries' progress bars, one for every component: lorakit shows progress itself."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # it warns at every sample that guiders are experimental
    diffusers.utils.logging.get_logger("diffusers.guiders.guider_utils").setLevel("ERROR")


def file_variant(path: Path) -> str | None:
    """Return `fp16` for a folder with only model.fp16.safetensors; None for plain names."""
    stems = [file.name.split(".") for file in sorted(path.glob("*.safetensors"))]
    if any(len(stem) == 2 for stem in stems):
        return None
    return stems[0][1].split("-")[0]


def load_network(path: Path, component_class: ComponentClass, dtype: torch.dtype) -> torch.nn.Module:
    """Load one complete network: the libraries fill missing tensors with random numbers and only warn."""
    import diffusers
    import transformers

    library, class_name = component_class.library, component_class.class_name
    if library == "diffusers":
        network_class, options = getattr(diffusers, class_name, None), {"torch_dtype": dtype}
    else:  # transformers, and diffusers' own pipeline modules such as stable_diffusion's safety checker
        source = transformers if library == "transformers" else getattr(diffusers.pipelines, library, None)
        network_class, options = getattr(source, class_name, None), {"dtype": dtype}
    if network_class is None:
        raise ConfigError(
            f"unknown class {library}.{class_name}", where=str(path), remedy="use a published model"
        )
    model, info = network_class.from_pretrained(
        path,
        local_files_only=True,
        use_safetensors=True,
        variant=file_variant(path),
        output_loading_info=True,
        **options,
    )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{len(missing)} tensors are missing from the weights, first {missing[0]}",
            where=str(path),
            remedy="download the whole model again",
        )
    frozen: torch.nn.Module = model.eval().requires_grad_(False)
    return frozen
