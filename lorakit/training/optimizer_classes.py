"""Optimizer classes by name, from the packages that maintain them, and their arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

from lorakit.config.recipe import OptimizerConfig
from lorakit.core.errors import ConfigError, first_line
from lorakit.core.nearest import did_you_mean

if TYPE_CHECKING:
    import torch  # not at run time: the answer for a finished run asks for versions only

Groups = Sequence[dict[str, Any]]
# The library keeps tensors of fewer than 4,096 elements in 32 bits: most of a small adapter.
_ALL_IN_8_BITS = {"min_8bit_size": 1}


@dataclass(frozen=True)
class OptimizerClass:
    """A class by dotted name, and the arguments that lorakit passes unless the recipe has others.

    `package` is what has to be installed for it, and `extra` the extra of lorakit that brings it.
    """

    path: str
    package: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    extra: str | None = None
    takes_betas: bool = True


CLASSES = {
    "adamw": OptimizerClass("torch.optim.AdamW", "torch"),
    "adamw8bit": OptimizerClass("bitsandbytes.optim.AdamW8bit", "bitsandbytes", _ALL_IN_8_BITS),
    "paged_adamw8bit": OptimizerClass("bitsandbytes.optim.PagedAdamW8bit", "bitsandbytes", _ALL_IN_8_BITS),
    "lion": OptimizerClass("bitsandbytes.optim.Lion32bit", "bitsandbytes"),
    "lion8bit": OptimizerClass("bitsandbytes.optim.Lion8bit", "bitsandbytes", _ALL_IN_8_BITS),
    "paged_lion8bit": OptimizerClass("bitsandbytes.optim.PagedLion8bit", "bitsandbytes", _ALL_IN_8_BITS),
    "ademamix8bit": OptimizerClass("bitsandbytes.optim.AdEMAMix8bit", "bitsandbytes", _ALL_IN_8_BITS),
    "paged_ademamix8bit": OptimizerClass(
        "bitsandbytes.optim.PagedAdEMAMix8bit", "bitsandbytes", _ALL_IN_8_BITS
    ),
    "adafactor": OptimizerClass(
        "transformers.optimization.Adafactor",
        "transformers",
        {"scale_parameter": False, "relative_step": False},  # the recipe's own learning rate
        takes_betas=False,
    ),
    "came": OptimizerClass("pytorch_optimizer.CAME", "pytorch-optimizer", extra="optimizers"),
    "prodigy": OptimizerClass("prodigyopt.Prodigy", "prodigyopt", extra="optimizers"),
    "schedulefree_adamw": OptimizerClass(
        "schedulefree.AdamWScheduleFree", "schedulefree", extra="optimizers"
    ),
    "muon": OptimizerClass(
        "torch.optim.Muon", "torch", {"adjust_lr_fn": "match_rms_adamw"}, takes_betas=False
    ),
}


ELEMENTWISE = ("adamw", "adamw8bit", "paged_adamw8bit", "lion", "lion8bit", "paged_lion8bit")
"""Optimizers that treat every element alike, so that many parameters can be one flat tensor."""


def resolve_class(name: str) -> OptimizerClass:
    """Return the entry of a name, or one for a dotted name."""
    return CLASSES.get(name) or OptimizerClass(name, name.partition(".")[0])


def package_version(name: str) -> dict[str, str]:
    """Return the version of the package of an optimizer by its name; {} if it is not installed."""
    package = resolve_class(name).package
    if name not in CLASSES:  # the name of a module, whose package may have another one
        package = metadata.packages_distributions().get(package, [package])[0]
    try:
        return {package: metadata.version(package)}
    except metadata.PackageNotFoundError:
        return {}


def import_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class of an optimizer; ConfigError if it is not installed or no optimizer."""
    import torch

    entry = resolve_class(name)
    module, _, attribute = entry.path.rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, ImportError)
        remedy = f"pip install 'lorakit[{entry.extra}]'" if entry.extra else f"pip install {entry.package}"
        raise ConfigError(
            f"the optimizer {name!r} cannot be loaded: {first_line(error)}",
            where="optimizer.name",
            remedy=remedy if missing else f"write the name of a class in {module}",
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, torch.optim.Optimizer)):
        raise ConfigError(
            f"{entry.path} is not an optimizer of torch", where="optimizer.name", remedy="name a class"
        )
    return loaded


def check_device(name: str, device: torch.device) -> None:
    """Raise ConfigError for an optimizer that pages its state on a device that cannot."""
    if name.startswith("paged_") and device.type != "cuda":
        raise ConfigError(
            f"{name} moves its state between GPU and host memory, which needs CUDA",
            where="optimizer.name",
            remedy=f"set optimizer.name={name.removeprefix('paged_')}",
        )


def construct(
    name: str, groups: Groups, config: OptimizerConfig, arguments: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer of a class by name; ConfigError if it refuses an argument."""
    entry, kind = resolve_class(name), import_class(name)
    known = [key for key in inspect.signature(kind).parameters if key not in ("params", "kwargs")]
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.betas is not None and entry.takes_betas:
        common["betas"] = config.betas
    common = {key: value for key, value in common.items() if key in known}
    every = {**common, **entry.arguments, **(arguments or {}), **_options(config, known, name)}
    try:
        return kind(list(groups), **every)
    except Exception as error:  # any code of a package runs here, and its message is about these arguments
        raise ConfigError(
            f"{entry.path} refuses its arguments: {first_line(error)}",
            where="optimizer",
            remedy=f"its arguments are {', '.join(known)}",
        ) from error


def _options(config: OptimizerConfig, known: Sequence[str], name: str) -> dict[str, Any]:
    for key in config.options:
        if key not in known:
            raise ConfigError(
                f"{name} has no argument {key!r}{did_you_mean(key, known)}",
                where=f"optimizer.options.{key}",
                remedy=f"its arguments are {', '.join(known)}",
            )
    return {key: tuple(v) if isinstance(v, list) else v for key, v in config.options.items()}
