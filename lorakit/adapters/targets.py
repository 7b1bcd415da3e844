"""Target modules: the modules of a network that get an adapter, and the rank and alpha of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lorakit.config.recipe import AdapterConfig
from lorakit.core.errors import ConfigError

REGEX_PREFIX = "re:"
ADAPTABLE_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BLOCKS = re.compile(r"(?P<name>.+?)(?:\.(?P<first>\d+)(?:-(?P<last>\d+))?)?")
_IN_BLOCK = re.compile(r"blocks?\.")  # leaves out the first and the last layer of a network
CLIP_ATTENTION_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter of one network before it is injected: method, target modules, ranks and alphas."""

    method: str
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    init: str = "kaiming"
    factor: int | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Ranks of the modules that do not have `rank`."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Alphas of the modules that do not have `alpha`."""

    @property
    def starts_from_weight(self) -> bool:
        """True for PiSSA and OLoRA: the adapter starts as a part of the base model's weight.

        That part is subtracted again, so such an adapter is stored with twice the rank.
        """
        return self.init in ("pissa", "olora")

    def metadata(self, component: str) -> dict[str, Any]:
        """Return the adapter's entries in the file metadata; ranks and alphas are those of stored tensors."""
        factor = 2 if self.starts_from_weight else 1
        alpha_factor = math.sqrt(factor) if self.method == "rslora" else factor
        entries: dict[str, Any] = {
            "type": self.method,
            "rank": self.rank * factor,
            "alpha": float(self.alpha * alpha_factor),
        }
        if self.rank_pattern or self.alpha_pattern:
            entries["rank_pattern"] = {
                f"{component}.{module}": rank * factor for module, rank in self.rank_pattern.items()
            }
            entries["alpha_pattern"] = {
                f"{component}.{module}": float(alpha * alpha_factor)
                for module, alpha in self.alpha_pattern.items()
            }
        if self.factor:
            entries["factor"] = self.factor
        return entries


def adapter_metadata(specs: Mapping[str, AdapterSpec]) -> dict[str, Any]:
    """Return the metadata of the adapters of several networks, by component, which share one method."""
    first, *others = [spec.metadata(component) for component, spec in specs.items()]
    for other in others:
        for key in ("rank_pattern", "alpha_pattern"):
            if key in other:
                first[key] = first.get(key, {}) | other[key]
    return first


def text_encoder_adapter_spec(
    network: nn.Module, settings: AdapterConfig, num_skipped_layers: int = 0
) -> AdapterSpec:
    """Return the recipe's adapter for a CLIP text encoder: the attention of its layers.

    The last `num_skipped_layers` layers get no adapter, because no text embedding is read from them. Method,
    rank and alpha are those of the denoiser.
    """
    modules: tuple[str, ...] = ()
    if settings.text_encoder:
        layers = dict(network.named_modules())
        last = max(int(name.rpartition(".")[2]) for name in layers if re.search(r"\.layers\.\d+$", name))
        skipped = tuple(f".layers.{last - number}." for number in range(num_skipped_layers))
        candidates = find_target_modules(network, CLIP_ATTENTION_TARGETS)
        modules = tuple(name for name in candidates if not any(part in name for part in skipped))
    method = settings.type if modules else "none"
    return AdapterSpec(method, settings.rank, settings.alpha, modules, settings.init, settings.factor)


def matches_module(pattern: str, name: str) -> bool:
    """Return True if a module's name ends in `pattern`, compared part by part.

    A pattern that starts with `re:` is a regular expression for the whole name.
    """
    if pattern.startswith(REGEX_PREFIX):
        return re.fullmatch(pattern.removeprefix(REGEX_PREFIX), name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def find_target_modules(network: nn.Module, targets: str | Iterable[str]) -> list[str]:
    """Return the names of the layers that match `targets`.

    `targets` is one regular expression for the whole name, or a list of patterns as in `matches_module`.
    """
    patterns = [REGEX_PREFIX + targets] if isinstance(targets, str) else list(targets)
    exact = set(patterns)  # the names of a loaded file are hundreds: compare them by hash
    endings = tuple(f".{p}" for p in patterns if not p.startswith(REGEX_PREFIX))
    expressions = [re.compile(p.removeprefix(REGEX_PREFIX)) for p in patterns if p.startswith(REGEX_PREFIX)]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, ADAPTABLE_LAYERS)
        and (name in exact or name.endswith(endings) or any(e.fullmatch(name) for e in expressions))
    ]


def denoiser_adapter_spec(
    network: nn.Module, settings: AdapterConfig, default: str | list[str]
) -> AdapterSpec:
    """Return the recipe's adapter for a denoiser whose family targets `default`.

    Raises ConfigError that names the recipe key if a pattern or a block matches nothing.
    """
    if settings.type == "none":
        return AdapterSpec("none", settings.rank, settings.alpha, ())
    targets = settings.targets if isinstance(settings.targets, list) else default
    modules = _modules_in_blocks(find_target_modules(network, targets), settings, targets)
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    if settings.conv_rank:
        convolutions = _convolutions(network, settings)
        rank_pattern = dict.fromkeys(convolutions, settings.conv_rank)
        alpha_pattern = dict.fromkeys(convolutions, settings.alpha * settings.conv_rank / settings.rank)
        modules = list(dict.fromkeys([*modules, *convolutions]))
    rank_pattern |= _apply_pattern(modules, settings.rank_pattern, "rank_pattern")
    alpha_pattern |= _apply_pattern(modules, settings.alpha_pattern, "alpha_pattern")
    return AdapterSpec(
        settings.type,
        settings.rank,
        settings.alpha,
        tuple(modules),
        settings.init,
        settings.factor,
        rank_pattern,
        alpha_pattern,
    )


def no_target_error(targets: Any) -> ConfigError:
    """Return the error for targets that match no layer of the base model."""
    return ConfigError(
        f"no module of the base model matches the adapter's targets {targets!r}",
        where="adapter.targets",
        remedy="use `attention`, or endings of module names such as to_q",
    )


def _modules_in_blocks(modules: list[str], settings: AdapterConfig, targets: str | list[str]) -> list[str]:
    if not modules:
        raise no_target_error(targets)
    if settings.blocks is None:
        return modules
    for block in settings.blocks:
        if not any(module_in_block(block, name) for name in modules):
            roots = dict.fromkeys(name.split(".")[0] for name in modules)
            raise ConfigError(
                f"no target module is in the block {block!r}",
                where="adapter.blocks",
                remedy=f"names of blocks in this base model start with {', '.join(roots)}",
            )
    return [name for name in modules if any(module_in_block(block, name) for block in settings.blocks)]


def module_in_block(block: str, name: str) -> bool:
    """Return True if a module is in a block such as `mid_block`, `down_blocks.1` or
    `transformer_blocks.4-11`."""
    match = _BLOCKS.fullmatch(block)
    if match is None or not name.startswith(match["name"] + "."):
        return False
    if match["first"] is None:
        return True
    number = name.removeprefix(match["name"] + ".").split(".")[0]
    last = match["last"] or match["first"]
    return number.isdigit() and int(match["first"]) <= int(number) <= int(last)


def _convolutions(network: nn.Module, settings: AdapterConfig) -> list[str]:
    """Return the convolutions inside blocks, without depthwise ones, whose weight has no low-rank form."""
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and _IN_BLOCK.search(name)
    ]
    if settings.blocks:
        names = [name for name in names if any(module_in_block(block, name) for block in settings.blocks)]
    if not names:
        raise ConfigError(
            "the base model has no convolutions in its blocks",
            where="adapter.conv_rank",
            remedy="leave conv_rank out",
        )
    return names


def _apply_pattern(modules: list[str], patterns: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the value of each module that a pattern matches; the first pattern that matches counts."""
    values: dict[str, Any] = {}
    for pattern, value in patterns.items():
        matches = [name for name in modules if matches_module(pattern, name)]
        if not matches:
            raise ConfigError(
                f"no target module matches {pattern!r}",
                where=f"adapter.{key}",
                remedy=f"use an ending such as {modules[0].split('.')[-1]}, or re: and a regular expression",
            )
        values = {name: value for name in matches} | values
    return values
