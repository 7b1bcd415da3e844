"""The entries of a recipe's lists of modules: each must match a module, or is refused with the nearest name.

An entry matches the modules whose name ends in it, compared part by part; one that starts with `re:` is a
regular expression for the whole name. Common other spellings are accepted, and the log names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean, nearest_name

REGEX_PREFIX = "re:"
ADAPTABLE_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LogFn = Callable[[str], None]
_REGEX_CHARACTERS = re.compile(r"[*+?\[\]()^$|\\]")
_FILE_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.")
_UNDERSCORED_PREFIXES = ("lora_unet_", "lora_transformer_")
_OTHER_NAMES = {
    "q_proj": ("to_q",),
    "k_proj": ("to_k",),
    "v_proj": ("to_v",),
    "out_proj": ("to_out",),
    "o_proj": ("to_out",),
    "query": ("to_q",),
    "key": ("to_k",),
    "value": ("to_v",),
    "proj_attn": ("to_out",),
    "qkv": ("to_q", "to_k", "to_v"),
    "to_qkv": ("to_q", "to_k", "to_v"),
}
"""Last parts of names in other programs, and in diffusers before 0.20."""


@dataclass(frozen=True)
class EntryMatch:
    """One entry of a list: the patterns it is read as (itself, for the usual spelling), and its modules."""

    entry: str
    patterns: tuple[str, ...]
    modules: tuple[str, ...]

    def summary(self) -> str:
        """Return the number of modules for the log, and the spelling that the entry was read as."""
        other = f" (read as {', '.join(self.patterns)})" if self.patterns != (self.entry,) else ""
        return f"{self.entry} {len(self.modules)}{other}"


@dataclass(frozen=True)
class AdaptedNetwork:
    """A network that gets an adapter, with the names that an entry of a recipe may start with."""

    network: nn.Module
    component: str = ""
    """Its component in the pipeline, such as `unet`."""
    siblings: tuple[str, ...] = ()
    """The other components that get the same adapter: the second of two experts."""

    @property
    def title(self) -> str:
        """The network's name in messages."""
        return f"the {self.component}" if self.component else "the base model"

    def is_for_sibling(self, entry: str) -> bool:
        """Return True if an entry starts with the name of another component."""
        bare = entry.removeprefix(REGEX_PREFIX)
        return any(bare.startswith((f"{name}.", rf"{name}\.")) for name in self.siblings)


def matches_module(pattern: str, name: str) -> bool:
    """Return True if a module's name ends in `pattern`, compared part by part.

    A pattern that starts with `re:` is a regular expression for the whole name.
    """
    if pattern.startswith(REGEX_PREFIX):
        return re.fullmatch(pattern.removeprefix(REGEX_PREFIX), name) is not None
    return name == pattern or name.endswith(f".{pattern}")


def match_entries(
    entries: Iterable[str], modules: Sequence[str], adapted: AdaptedNetwork, where: str
) -> list[EntryMatch]:
    """Return the modules of each entry among `modules`, without entries that name another component.

    `where` is the recipe key in errors. Raises ConfigError with the nearest name for an entry that matches
    none of them.
    """
    matches = []
    for entry in entries:
        if adapted.is_for_sibling(entry):
            continue
        patterns = _read_entry(entry, modules, adapted)
        if not patterns:
            raise _unmatched_error(entry, modules, adapted, where)
        matched = [name for name in modules if any(matches_module(pattern, name) for pattern in patterns)]
        matches.append(EntryMatch(entry, patterns, tuple(matched)))
    return matches


def log_matches(matches: Sequence[EntryMatch], adapted: AdaptedNetwork, where: str, log: LogFn) -> None:
    """Write one line with the number of modules of each entry."""
    if matches:
        counts = ", ".join(match.summary() for match in matches)
        log(f"{where}, modules of {adapted.title} by entry: {counts}")


def layer_names(network: nn.Module) -> list[str]:
    """Return the names of all layers that can have an adapter, in the network's order."""
    return [name for name, module in network.named_modules() if isinstance(module, ADAPTABLE_LAYERS)]


def _read_entry(entry: str, modules: Sequence[str], adapted: AdaptedNetwork) -> tuple[str, ...]:
    """Return the patterns that an entry is read as; empty if no spelling of it matches."""
    for patterns in _spellings(entry, modules, adapted):
        resolved = [_with_only_layer(pattern, modules, adapted.network) for pattern in patterns]
        if resolved and all(resolved):
            return tuple(pattern for pattern in resolved if pattern)
    return ()


def _spellings(entry: str, modules: Sequence[str], adapted: AdaptedNetwork) -> Iterator[Sequence[str]]:
    """Yield the patterns that an entry could mean, the likeliest first."""
    yield (entry,)
    is_regex = entry.startswith(REGEX_PREFIX)
    bare = _without_prefix(entry, adapted.component)
    yield (bare,)
    if is_regex:
        return
    underscored = {name.replace(".", "_"): name for name in modules}
    for prefix in ("", *_UNDERSCORED_PREFIXES):
        if entry.startswith(prefix) and (name := underscored.get(entry.removeprefix(prefix))):
            yield (name,)
    if _REGEX_CHARACTERS.search(bare):
        if _is_regular_expression(bare):
            yield (REGEX_PREFIX + bare,)
        return
    *above, last = bare.split(".")
    for parts in ([*above, last], [*above, *_OTHER_NAMES.get(last, ())]):
        names = parts[len(above) :]
        yield tuple(".".join([*above, name]) for name in names)
        if "attn" in above:  # a U-Net has attn1 and attn2
            numbered = (
                ".".join([f"attn{number}" if part == "attn" else part for part in above] + [name])
                for number in (1, 2)
                for name in names
            )
            yield tuple(one for one in numbered if _with_only_layer(one, modules, adapted.network))


def _without_prefix(entry: str, component: str) -> str:
    """Return an entry without the component, the prefix of a file's key, and `.weight` at its end."""
    marker = REGEX_PREFIX if entry.startswith(REGEX_PREFIX) else ""
    bare = entry.removeprefix(marker)
    for prefix in (*_FILE_PREFIXES, *((f"{component}.", rf"{component}\.") if component else ())):
        bare = bare.removeprefix(prefix)
    return marker + bare.removesuffix(".weight")


def _is_regular_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _with_only_layer(pattern: str, modules: Sequence[str], network: nn.Module) -> str | None:
    """Return a pattern that matches modules: itself, or with the only layer inside the module it names.

    `to_out` holds a linear layer and a dropout: it becomes `to_out.0`. None if neither matches.
    """
    if any(matches_module(pattern, name) for name in modules):
        return pattern
    if pattern.startswith(REGEX_PREFIX):
        return None
    inner: set[str] = set()
    for container, layers in _layers_inside(pattern, network).items():
        if len(layers) != 1:
            return None
        inner.add(layers[0].removeprefix(f"{container}."))
    extended = f"{pattern}.{inner.pop()}" if len(inner) == 1 else None
    return extended if extended and any(matches_module(extended, name) for name in modules) else None


def _layers_inside(pattern: str, network: nn.Module) -> Mapping[str, list[str]]:
    """Return the adaptable layers inside each module that a pattern names."""
    containers = [name for name, _ in network.named_modules() if name and matches_module(pattern, name)]
    layers = layer_names(network)
    return {name: [layer for layer in layers if layer.startswith(f"{name}.")] for name in containers}


def _unmatched_error(entry: str, modules: Sequence[str], adapted: AdaptedNetwork, where: str) -> ConfigError:
    """Return the error for an entry that matches none of `modules`, with the reason and the nearest name."""
    bare = _without_prefix(entry, adapted.component)
    if entry.startswith("text_encoder"):
        return ConfigError(
            f"{entry!r} names a text encoder, and this key is for the modules of {adapted.title}",
            where=where,
            remedy="leave it out; `adapter.text_encoder` adapts the attention of text encoders",
        )
    reason = _reason(bare, adapted, where)
    message = f"no module that is trained in {adapted.title} matches {entry!r}{reason}"
    endings = _endings(modules)
    if nearest := _nearest_ending(bare, modules):
        remedy = f"did you mean {nearest}? Names of modules end in {', '.join(endings[:12])}"
    else:
        remedy = f"use the end of a module's name, such as {', '.join(endings[:12])}"
    if entry.startswith(REGEX_PREFIX):
        remedy = f"the expression must match a whole name, such as {modules[0]}"
    return ConfigError(message, where=where, remedy=remedy)


def _reason(pattern: str, adapted: AdaptedNetwork, where: str) -> str:
    pattern = _with_only_layer(pattern, layer_names(adapted.network), adapted.network) or pattern
    elsewhere = [name for name in layer_names(adapted.network) if matches_module(pattern, name)]
    if elsewhere:
        place = "in none of adapter.blocks" if where == "adapter.targets" else "not among the target modules"
        return f": the modules with this name, such as {elsewhere[0]}, are {place}"
    by_name = dict(adapted.network.named_modules())
    matched = [name for name in by_name if name and matches_module(pattern, name)]
    if not matched:
        return ""
    inside = _layers_inside(pattern, adapted.network)[matched[0]]
    if inside:
        parts = [name.removeprefix(f"{matched[0]}.") for name in inside]
        return f": {matched[0]} has several layers in it ({', '.join(parts[:6])}), of which it names none"
    kind = type(by_name[matched[0]]).__name__
    return f": {matched[0]} is a {kind}, and only linear layers and convolutions can have an adapter"


def _endings(modules: Sequence[str]) -> list[str]:
    """Return the different ends of names, from the last part that is not a number."""
    return list(dict.fromkeys(_ending(name.split("."), 1) for name in modules))


def _ending(parts: Sequence[str], count: int) -> str:
    """Return the last `count` parts, or more, so that the first is not a number."""
    while count < len(parts) and parts[-count].isdigit():
        count += 1
    return ".".join(parts[-count:])


def shortest_endings(modules: Iterable[str], network: nn.Module) -> list[str]:
    """Return ends of names that match all of `modules`, and as few other layers as possible."""
    names, layers = sorted(modules), layer_names(network)
    candidates = [
        list(dict.fromkeys(_ending(name.split("."), count) for name in names)) for count in (1, 2, 3)
    ]

    def num_others(endings: list[str]) -> int:
        matched = [one for one in layers if any(matches_module(ending, one) for ending in endings)]
        return len(set(matched) - set(names))

    return min(candidates, key=num_others)


def _nearest_ending(pattern: str, modules: Sequence[str]) -> str | None:
    count = pattern.count(".") + 1
    candidates = {
        _ending(name.split("."), number): None for name in modules for number in {count, count + 1, 1}
    }
    return nearest_name(pattern, candidates)


@dataclass(frozen=True)
class Block:
    """An entry of `adapter.blocks`: a module's name, and the first and last number of a list of blocks."""

    name: str
    first: int | None = None
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> Block:
        """Parse `mid_block`, `down_blocks.1` or `transformer_blocks.4-11`."""
        match = re.fullmatch(r"(.+?)\.(\d+)(?:-(\d+))?", text)
        if match is None:
            return cls(text)
        return cls(match[1], int(match[2]), int(match[3] or match[2]))

    def contains(self, module: str) -> bool:
        """Return True if a module is in the block."""
        if not module.startswith(f"{self.name}."):
            return False
        if self.first is None or self.last is None:
            return True
        number = module.removeprefix(f"{self.name}.").split(".")[0]
        return number.isdigit() and self.first <= int(number) <= self.last


def match_blocks(
    blocks: Sequence[str], modules: Sequence[str], adapted: AdaptedNetwork, where: str, log: LogFn
) -> list[EntryMatch]:
    """Return the modules in each block, without blocks of another component.

    Raises ConfigError for a block without any, and for a range beyond the last block; blocks inside a range
    that have no target module are named in the log.
    """
    matches = []
    for text in blocks:
        if adapted.is_for_sibling(text):
            continue
        bare = _without_prefix(text, adapted.component)
        block = Block.parse(bare)
        numbers = _block_numbers(adapted.network, block.name)
        if block.first is not None and block.last is not None:
            _check_range(text, block, numbers, where)
        matched = [name for name in modules if block.contains(name)]
        if not matched:
            raise _empty_block_error(text, block, modules, adapted, where)
        if block.first is not None and block.last is not None:
            empty = [n for n in range(block.first, block.last + 1) if not _has_module(block.name, n, matched)]
            if empty:
                log(f"{where}, {text}: no target module in {', '.join(f'{block.name}.{n}' for n in empty)}")
        matches.append(EntryMatch(text, (bare,), tuple(matched)))
    return matches


def _has_module(name: str, number: int, modules: Sequence[str]) -> bool:
    return any(module.startswith(f"{name}.{number}.") for module in modules)


def _block_numbers(network: nn.Module, name: str) -> list[int]:
    """Return the numbers of the blocks in a list of blocks; empty if there is no such list."""
    parents = dict(network.named_modules())
    children = parents[name].named_children() if name in parents else ()
    return sorted(int(child) for child, _ in children if child.isdigit())


def _check_range(text: str, block: Block, numbers: Sequence[int], where: str) -> None:
    first, last = block.first or 0, block.last or 0
    if first > last:
        raise ConfigError(
            f"{text!r} has no blocks: its last number is the smaller one",
            where=where,
            remedy=f"write {block.name}.{last}-{first}",
        )
    if numbers and last > numbers[-1]:
        remedy = f"its blocks are {numbers[0]} to {numbers[-1]}"
        if first <= numbers[-1]:
            remedy += f": write {block.name}.{first}-{numbers[-1]}"
        raise ConfigError(
            f"{text!r} goes beyond the last block of {block.name} in this base model",
            where=where,
            remedy=remedy,
        )


def _empty_block_error(
    text: str, block: Block, modules: Sequence[str], adapted: AdaptedNetwork, where: str
) -> ConfigError:
    roots = dict.fromkeys(name.split(".")[0] for name in modules)
    known = {".".join(name.split(".")[:count]): None for name in modules for count in (1, 2)}
    exists = block.name in dict(adapted.network.named_modules())
    reason = ", which has none of the targets" if exists else did_you_mean(text, known)
    return ConfigError(
        f"no target module of {adapted.title} is in the block {text!r}{reason}",
        where=where,
        remedy=f"names of blocks with target modules start with {', '.join(roots)}",
    )
