"""Read the tensors of a file by the rule of one consumer: the module of each key, or why it is ignored.

Nothing here uses our own reader, so that a written file is proven by what the consumer does with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from lorakit.adapters.formats.consumers import convention, layers
from lorakit.adapters.formats.consumers.ends import LEGACY_ENDS, UNREAD
from lorakit.adapters.formats.consumers.layers import Layer
from lorakit.adapters.formats.consumers.rules import Alphas, LoaderRule
from lorakit.adapters.formats.delta_weights import DeltaWeight
from lorakit.core.errors import DataError
from lorakit.core.strict_json import parse_json

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ReadModule:
    """A weight that the file changes: the parts of its adapter, by name."""

    layer: Layer
    parts: dict[str, torch.Tensor]
    kind: str
    """lora, dora, loha, lokr, full, oft, glora, ia3, set or bias."""


@dataclass
class Reading:
    """The effect of a file's tensors in one consumer."""

    rule: LoaderRule
    family: str
    modules: dict[str, ReadModule] = field(default_factory=dict)
    """By stem of their keys."""
    ignored: dict[str, str] = field(default_factory=dict)
    """The reason for each key without effect."""
    problems: list[str] = field(default_factory=list)
    """Reasons for which modules that are read get another change than was trained."""
    refusal: str | None = None
    """The reason for which the consumer loads nothing."""

    @property
    def num_keys(self) -> int:
        """The number of keys of the file."""
        return len(self.ignored) + sum(len(module.parts) for module in self.modules.values())

    def deltas(self) -> dict[str, DeltaWeight]:
        """Return the delta weights of diffusers' modules as this consumer computes them.

        Raises DataError for shapes that do not fit together.
        """
        result: dict[str, DeltaWeight] = {}
        for stem in sorted(self.modules):
            read = self.modules[stem]
            if read.kind == "bias":
                continue
            delta = convention.build_delta(read.kind, read.parts, self.rule, stem)
            result |= convention.member_deltas(delta, read.layer, stem)
        return result


def read_tensors(
    tensors: Tensors, rule: LoaderRule, family: str, metadata: Mapping[str, str] | None = None
) -> Reading:
    """Return the effect of a file's tensors by a consumer's rule for a family."""
    reading = Reading(rule, family)
    conversion = next((c for c in rule.conversions if all(mark in tensors for mark in c.marks)), None)
    stems: dict[str, dict[str, str]] = {}
    for key in sorted(tensors):
        stem, part = split_key(conversion.new_key(key) if conversion else key, rule)
        if part is None:
            reading.ignored[key] = _unread_reason(key, stem)
        else:
            stems.setdefault(stem, {})[key] = part
    for stem, parts in stems.items():
        _read_module(reading, stem, parts, tensors)
    _apply_file_rules(reading, tensors, metadata or {})
    return reading


def split_key(key: str, rule: LoaderRule) -> tuple[str, str | None]:
    """Return the stem of a key and the part that its end is; None for an end that the consumer ignores."""
    for end, part in LEGACY_ENDS.items():
        if key.endswith(end):
            return key.removesuffix(end), part
    pieces = key.split(".")
    for start in range(1, len(pieces)):
        end = ".".join(pieces[start:])
        if end in rule.ends:
            return ".".join(pieces[:start]), rule.ends[end]
    return key, None


def _unread_reason(key: str, stem: str) -> str:
    pieces = key.split(".")
    ends = (".".join(pieces[start:]) for start in range(1, len(pieces)))
    known = next((UNREAD[end] for end in ends if end in UNREAD), None)
    return f"{known}, which it does not read" if known else "an unknown ending"


def find_layer(stem: str, rule: LoaderRule, family: str) -> Layer | None:
    """Return the weight that a consumer looks up for a stem; None if it looks up none."""
    for spelling in rule.spellings:
        if (layer := layers.resolve(stem, spelling, family)) is not None:
            return layer
    return None


def _read_module(reading: Reading, stem: str, parts: dict[str, str], tensors: Tensors) -> None:
    layer = find_layer(stem, reading.rule, reading.family)
    if layer is None:
        reading.ignored |= dict.fromkeys(parts, "a module that it does not look up")
        return
    kind = convention.kind_of(set(parts.values()))
    if kind is None:
        reading.ignored |= dict.fromkeys(parts, "an adapter without its factors")
        return
    if "alpha" in parts.values() and _alphas(reading.rule, stem) is not Alphas.READ:
        alpha = next(key for key, part in parts.items() if part == "alpha")
        reading.ignored[alpha] = f"an alpha, {_alphas(reading.rule, stem).value} beside these names"
        parts = {key: part for key, part in parts.items() if key != alpha}
    values = {part: tensors[key] for key, part in parts.items()}
    reading.modules[stem] = ReadModule(layer, values, kind)
    if problem := convention.shape_problem(kind, values):
        reading.problems.append(f"{stem}: {problem}")


def _alphas(rule: LoaderRule, stem: str) -> Alphas:
    return next((mode for prefix, mode in rule.alphas.items() if stem.startswith(prefix)), Alphas.READ)


def _apply_file_rules(reading: Reading, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Add what depends on the whole file: refused alphas, one alpha for all, alphas in the metadata."""
    rule = reading.rule
    refused = [key for key, reason in reading.ignored.items() if "alpha, refused" in reason]
    if refused:
        reading.refusal = f"it raises an error for alphas beside these names, first {refused[0]}"
    alphas = {
        round(float(read.parts["alpha"]), 4) for read in reading.modules.values() if "alpha" in read.parts
    }
    if rule.one_alpha and len(alphas) > 1:
        reading.problems.append(f"it uses one alpha for all modules, and the file has {len(alphas)}")
    scale = _metadata_scale(metadata)
    is_read = rule.reads_peft_metadata and "lorakit" not in metadata
    if scale is not None and not alphas and abs(scale - 1) > 1e-6 and not is_read:
        reading.problems.append(f"it ignores the alpha in the metadata, so its effect is {1 / scale:g} times")
    if rule.first_width is not None and not any(c.widens and c.marks[0] in tensors for c in rule.conversions):
        _check_first_width(reading, *rule.first_width)


def _check_first_width(reading: Reading, module: str, width: int) -> None:
    for stem, read in reading.modules.items():
        down = read.parts.get("down")
        is_wider = read.layer.members == (module,) and down is not None and down.shape[1] == 2 * width
        if is_wider and "reshape" not in read.parts:
            reading.problems.append(
                f"{stem}: the base model's weight has {width} inputs, and no reshape_weight"
            )


def _metadata_scale(metadata: Mapping[str, str]) -> float | None:
    """Return alpha / rank of the metadata that diffusers or lorakit wrote; None if there is none."""
    for key in ("lora_adapter_metadata", "lorakit"):
        try:
            values = parse_json(metadata.get(key, "null"), key)
        except (DataError, ValueError):
            continue
        if isinstance(values, dict):
            by_name = {name.rsplit(".", 1)[-1]: value for name, value in values.items()}
            rank, alpha = (
                by_name.get("r", by_name.get("rank")),
                by_name.get("lora_alpha", by_name.get("alpha")),
            )
            if isinstance(rank, int | float) and isinstance(alpha, int | float) and rank:
                return float(alpha / rank)
    return None
