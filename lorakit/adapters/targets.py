"""Which modules of a network get an adapter, and each one's rank and alpha."""

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
_INSIDE = re.compile(r"blocks?\.")  # of a block: the first and the last layer of a network are not


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter before it is there: its kind, its modules, and their ranks where they differ."""

    type: str
    rank: int
    alpha: float
    modules: tuple[str, ...]
    init: str = "kaiming"
    factor: int | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Modules whose rank is another one; none of the others."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """Modules whose alpha is another one."""

    @property
    def started(self) -> bool:
        """Whether it begins as a part of the base's weights, which is taken off again: stored at twice the
        rank."""
        return self.init in ("pissa", "olora")

    def facts(self, component: str) -> dict[str, Any]:
        """What its file says of it; ranks and alphas are those of the stored tensors."""
        times = 2 if self.started else 1
        more = math.sqrt(times) if self.type == "rslora" else times
        told: dict[str, Any] = {
            "type": self.type,
            "rank": self.rank * times,
            "alpha": float(self.alpha * more),
        }
        if self.ranks or self.alphas:
            told["ranks"] = {f"{component}.{m}": rank * times for m, rank in self.ranks.items()}
            told["alphas"] = {f"{component}.{m}": float(alpha * more) for m, alpha in self.alphas.items()}
        if self.factor:
            told["factor"] = self.factor
        return told


def adapter_metadata(shapes: Mapping[str, AdapterSpec]) -> dict[str, Any]:
    """What a file says of the adapters of several networks, by component; all are of the first one's kind."""
    told = [shape.facts(component) for component, shape in shapes.items()]
    for other in told[1:]:
        for key in ("ranks", "alphas"):
            if key in other:
                told[0][key] = told[0].get(key, {}) | other[key]
    return told[0]


CLIP_ATTENTION_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def text_encoder_adapter_spec(network: nn.Module, settings: AdapterConfig, unread: int = 0) -> AdapterSpec:
    """The recipe's adapter for a CLIP text encoder: type, rank and alpha of the denoiser's, attention of all
    layers but the last `unread`, which no condition comes from."""
    modules: tuple[str, ...] = ()
    if settings.text_encoder:
        layers = dict(network.named_modules())
        last = max(int(name.rpartition(".")[2]) for name in layers if re.search(r"\.layers\.\d+$", name))
        skipped = tuple(f".layers.{last - number}." for number in range(unread))
        every = find_target_modules(network, CLIP_ATTENTION_TARGETS)
        modules = tuple(name for name in every if not any(part in name for part in skipped))
    kind = settings.type if modules else "none"
    return AdapterSpec(kind, settings.rank, settings.alpha, modules, settings.init, settings.factor)


def matches_module(pattern: str, name: str) -> bool:
    """Whether a module's name ends in `pattern`, part by part; `re:` begins an expression for all of it."""
    if pattern.startswith(REGEX_PREFIX):
        return re.fullmatch(pattern.removeprefix(REGEX_PREFIX), name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def find_target_modules(network: nn.Module, targets: str | Iterable[str]) -> list[str]:
    """The layers that `targets` mean: one expression for the whole name, or patterns of `matches`."""
    patterns = [REGEX_PREFIX + targets] if isinstance(targets, str) else list(targets)
    exact = set(patterns)  # a loaded file names hundreds
    short = tuple(f".{p}" for p in patterns if not p.startswith(REGEX_PREFIX))
    expressions = [re.compile(p.removeprefix(REGEX_PREFIX)) for p in patterns if p.startswith(REGEX_PREFIX)]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, ADAPTABLE_LAYERS)
        and (name in exact or name.endswith(short) or any(e.fullmatch(name) for e in expressions))
    ]


def denoiser_adapter_spec(
    network: nn.Module, settings: AdapterConfig, default: str | list[str]
) -> AdapterSpec:
    """The recipe's adapter for a network whose own targets are `default`.

    A key of the recipe that matches nothing is a `ConfigError` that names it.
    """
    if settings.type == "none":
        return AdapterSpec("none", settings.rank, settings.alpha, ())
    targets = settings.targets if isinstance(settings.targets, list) else default
    modules = _chosen(find_target_modules(network, targets), settings, targets)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    if settings.conv_rank:
        convolutions = _convolutions(network, settings)
        ranks = dict.fromkeys(convolutions, settings.conv_rank)
        alphas = dict.fromkeys(convolutions, settings.alpha * settings.conv_rank / settings.rank)
        modules = list(dict.fromkeys([*modules, *convolutions]))
    ranks |= _apply_pattern(modules, settings.rank_pattern, "rank_pattern")
    alphas |= _apply_pattern(modules, settings.alpha_pattern, "alpha_pattern")
    return AdapterSpec(
        settings.type,
        settings.rank,
        settings.alpha,
        tuple(modules),
        settings.init,
        settings.factor,
        ranks,
        alphas,
    )


def no_target_error(targets: Any) -> ConfigError:
    """The error for targets that no layer of the base matches."""
    return ConfigError(
        f"no module of the base matches the adapter's targets {targets!r}",
        where="adapter.targets",
        remedy="use `attention`, or endings of module names such as to_q",
    )


def _chosen(modules: list[str], settings: AdapterConfig, targets: str | list[str]) -> list[str]:
    if not modules:
        raise no_target_error(targets)
    if settings.blocks is None:
        return modules
    for block in settings.blocks:
        if not any(module_in_block(block, name) for name in modules):
            heads = dict.fromkeys(name.split(".")[0] for name in modules)
            raise ConfigError(
                f"no adapted module lies in {block!r}",
                where="adapter.blocks",
                remedy=f"blocks of this base begin with {', '.join(heads)}",
            )
    return [name for name in modules if any(module_in_block(block, name) for block in settings.blocks)]


def module_in_block(block: str, name: str) -> bool:
    """Whether a module lies in `mid_block`, `down_blocks.1` or `transformer_blocks.4-11`."""
    match = _BLOCKS.fullmatch(block)
    if match is None or not name.startswith(match["name"] + "."):
        return False
    if match["first"] is None:
        return True
    number = name.removeprefix(match["name"] + ".").split(".")[0]
    last = match["last"] or match["first"]
    return number.isdigit() and int(match["first"]) <= int(number) <= int(last)


def _convolutions(network: nn.Module, settings: AdapterConfig) -> list[str]:
    """Convolutions inside blocks; one that keeps its channels apart has nothing of low rank to learn."""
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and _INSIDE.search(name)
    ]
    if settings.blocks:
        names = [name for name in names if any(module_in_block(block, name) for block in settings.blocks)]
    if not names:
        raise ConfigError(
            "the base has no convolutions to adapt", where="adapter.conv_rank", remedy="leave it out"
        )
    return names


def _apply_pattern(modules: list[str], patterns: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The value of each module that a pattern matches; the first one that does counts."""
    chosen: dict[str, Any] = {}
    for pattern, value in patterns.items():
        hit = [name for name in modules if matches_module(pattern, name)]
        if not hit:
            raise ConfigError(
                f"no adapted module matches {pattern!r}",
                where=f"adapter.{key}",
                remedy=f"give an ending such as {modules[0].split('.')[-1]}, or re: and an expression",
            )
        chosen = {name: value for name in hit} | chosen
    return chosen
