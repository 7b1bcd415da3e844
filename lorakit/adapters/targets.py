"""Target modules: the modules of a network that get an adapter, and the rank and alpha of each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lorakit.adapters.target_patterns import (
    ADAPTABLE_LAYERS,
    REGEX_PREFIX,
    AdaptedNetwork,
    EntryMatch,
    LogFn,
    layer_names,
    log_matches,
    match_blocks,
    match_entries,
)
from lorakit.config.recipe import AdapterConfig
from lorakit.core.errors import ConfigError

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
    """Return the metadata of the adapters of several networks, by component, which share one method.

    The method is "none" only if no network has an adapter.
    """
    ordered = sorted(specs.items(), key=lambda item: item[1].method == "none")
    first, *others = [spec.metadata(component) for component, spec in ordered]
    for other in others:
        for key in ("rank_pattern", "alpha_pattern"):
            if key in other:
                first[key] = first.get(key, {}) | other[key]
    return first


def text_encoder_adapter_spec(
    network: nn.Module, component: str, settings: AdapterConfig, num_skipped_layers: int = 0
) -> AdapterSpec:
    """Return the recipe's adapter for the CLIP text encoder `component`: the attention of its layers.

    The last `num_skipped_layers` layers get no adapter, because no text embedding is read from them. Method,
    rank and alpha are those of the denoiser. The method is "none" for a text encoder that is not adapted.
    """
    modules: tuple[str, ...] = ()
    if settings.adapts_text_encoder(component):
        layers = dict(network.named_modules())
        last = max(int(name.rpartition(".")[2]) for name in layers if re.search(r"\.layers\.\d+$", name))
        skipped = tuple(f".layers.{last - number}." for number in range(num_skipped_layers))
        candidates = find_target_modules(network, CLIP_ATTENTION_TARGETS)
        modules = tuple(name for name in candidates if not any(part in name for part in skipped))
    method = settings.type if modules else "none"
    return AdapterSpec(method, settings.rank, settings.alpha, modules, settings.init, settings.factor)


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
    network: nn.Module,
    settings: AdapterConfig,
    default: str | list[str],
    *,
    component: str = "",
    siblings: Sequence[str] = (),
    log: LogFn = lambda text: None,
) -> AdapterSpec:
    """Return the recipe's adapter for a denoiser whose family targets `default`.

    `component` is the denoiser's name in the pipeline, `siblings` are the names of the other experts; `log`
    gets the number of modules of each entry. Raises ConfigError that names the recipe key and the nearest
    name if an entry of a list matches no module that is trained.
    """
    if settings.type == "none" or not settings.denoiser:
        return AdapterSpec("none", settings.rank, settings.alpha, ())
    adapted = AdaptedNetwork(network, component, tuple(siblings))
    convolutions = _convolutions(network) if settings.conv_rank else []
    modules = _target_modules(adapted, settings, default, convolutions, log)
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    if settings.conv_rank:
        convolutions = [name for name in convolutions if name in set(modules)]
        if not convolutions:
            raise _no_convolutions_error(settings)
        rank_pattern = dict.fromkeys(convolutions, settings.conv_rank)
        alpha_pattern = dict.fromkeys(convolutions, settings.alpha * settings.conv_rank / settings.rank)
        log(f"adapter.conv_rank, convolutions of {adapted.title}: {len(convolutions)}")
    rank_pattern |= _apply_pattern(modules, settings.rank_pattern, adapted, "adapter.rank_pattern", log)
    alpha_pattern |= _apply_pattern(modules, settings.alpha_pattern, adapted, "adapter.alpha_pattern", log)
    spec = AdapterSpec(
        settings.type,
        settings.rank,
        settings.alpha,
        tuple(modules),
        settings.init,
        settings.factor,
        rank_pattern,
        alpha_pattern,
    )
    _log_excessive_ranks(spec, adapted, log)
    return spec


def _target_modules(
    adapted: AdaptedNetwork,
    settings: AdapterConfig,
    default: str | list[str],
    convolutions: Sequence[str],
    log: LogFn,
) -> list[str]:
    """Return the target modules inside the recipe's blocks, then the convolutions of `conv_rank` there."""
    network, matches = adapted.network, []
    if isinstance(settings.targets, list):
        matches = match_entries(settings.targets, layer_names(network), adapted, "adapter.targets")
        targets = {name for match in matches for name in match.modules}
        modules = [name for name in layer_names(network) if name in targets]
    else:
        modules = find_target_modules(network, default)
    if not modules:
        raise no_target_error(settings.targets if isinstance(settings.targets, list) else default)
    modules = list(dict.fromkeys([*modules, *convolutions]))
    if settings.blocks is not None:
        blocks = match_blocks(settings.blocks, modules, adapted, "adapter.blocks", log)
        inside = {name for match in blocks for name in match.modules}
        modules = [name for name in modules if name in inside]
        # an entry may lose all its modules to the blocks
        matches = match_entries([match.entry for match in matches], modules, adapted, "adapter.targets")
        log_matches(blocks, adapted, "adapter.blocks", log)
    log_matches(matches, adapted, "adapter.targets", log)
    return modules


def no_target_error(targets: Any) -> ConfigError:
    """Return the error for targets that match no layer of the base model."""
    return ConfigError(
        f"no module of the base model matches the adapter's targets {targets!r}",
        where="adapter.targets",
        remedy="use `attention`, or endings of module names such as to_q",
    )


def _convolutions(network: nn.Module) -> list[str]:
    """Return the convolutions inside blocks, without depthwise ones, whose weight has no low-rank form."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and _IN_BLOCK.search(name)
    ]


def _no_convolutions_error(settings: AdapterConfig) -> ConfigError:
    place = "the blocks of adapter.blocks have" if settings.blocks else "the blocks of the base model have"
    remedy = "leave conv_rank out" + (", or name blocks that have convolutions" if settings.blocks else "")
    return ConfigError(f"{place} no convolutions", where="adapter.conv_rank", remedy=remedy)


def _apply_pattern(
    modules: Sequence[str], patterns: Mapping[str, Any], adapted: AdaptedNetwork, where: str, log: LogFn
) -> dict[str, Any]:
    """Return the value of each module that a pattern matches; the first pattern that matches counts.

    Raises ConfigError for a pattern that matches no module; one whose modules all match earlier patterns is
    named in the log.
    """
    values: dict[str, Any] = {}
    counted: list[EntryMatch] = []
    for match in match_entries(patterns, modules, adapted, where):
        own = tuple(name for name in match.modules if name not in values)
        if not own:
            log(f"warning: {where}, {match.entry} has no effect: earlier entries match all of its modules")
        values |= dict.fromkeys(own, patterns[match.entry])
        counted.append(EntryMatch(match.entry, match.patterns, own))
    log_matches(counted, adapted, where, log)
    return values


def _log_excessive_ranks(spec: AdapterSpec, adapted: AdaptedNetwork, log: LogFn) -> None:
    """Warn of ranks above the smaller side of a weight, whose further rows can have no effect."""
    if spec.method not in ("lora", "rslora", "dora"):
        return
    excessive: list[tuple[str, int, int]] = []
    for name in spec.target_modules:
        layer = adapted.network.get_submodule(name)
        largest = min(_weight_sides(layer))
        rank = spec.rank_pattern.get(name, spec.rank)
        if rank > largest:
            excessive.append((name, rank, largest))
    if excessive:
        name, rank, largest = excessive[0]
        log(
            f"warning: the rank is larger than {len(excessive)} modules of {adapted.title} allow, such as"
            f" {name}: {rank} rows train what {largest} can"
        )


def _weight_sides(layer: nn.Module) -> tuple[int, int]:
    """Return the outputs of a layer, and the inputs times the size of its kernel."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return layer.out_channels, layer.in_channels // layer.groups * math.prod(layer.kernel_size)
