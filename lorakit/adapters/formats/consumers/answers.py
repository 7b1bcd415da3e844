"""The answers of the rules: which program loads a file, wholly or partly, and what it ignores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorakit.adapters.formats import native_names
from lorakit.adapters.formats.consumers import diffusers, trainers, unet_names, webui
from lorakit.adapters.formats.consumers.comfyui import COMFYUI
from lorakit.adapters.formats.consumers.layers import network_of
from lorakit.adapters.formats.consumers.reading import Reading, Tensors, find_layer, read_tensors
from lorakit.adapters.formats.consumers.rules import Consumer, LoaderRule
from lorakit.core.errors import ConfigError

ALL_CONSUMERS: dict[str, Consumer] = {
    consumer.name: consumer
    for consumer in (
        COMFYUI,
        webui.A1111,
        webui.FORGE,
        diffusers.DIFFUSERS,
        trainers.KOHYA,
        trainers.MUSUBI,
    )
}
CONSUMERS = tuple(name for name, consumer in ALL_CONSUMERS.items() if consumer.is_export_target)
"""Programs that `lorakit export` writes for."""


@dataclass(frozen=True)
class LoadAnswer:
    """The answer to whether a consumer loads a file: yes, partly or no, and the reason."""

    word: str
    reason: str = ""

    @property
    def loads(self) -> bool:
        """True if the file has its whole effect."""
        return self.word == "yes"

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}" if self.reason else self.word


def rule_for(family: str, consumer: str) -> LoaderRule | None:
    """Return the rule by which a consumer reads the adapters of a family; None if it reads none."""
    result = ALL_CONSUMERS[consumer].rules.get(family)
    if result is None and consumer == "diffusers" and family not in diffusers.NOT_LOADED:
        return diffusers.DEFAULT_RULE
    return result


def loader_rules(family: str) -> dict[str, LoaderRule]:
    """Return the rule of each program that `lorakit export` writes adapters of a family for."""
    return {name: rule for name in CONSUMERS if (rule := rule_for(family, name)) is not None}


def divides_by_input_norm(family: str, consumer: str) -> bool:
    """Return True if a consumer computes DoRA wrongly: A1111 always divides by the norms of the inputs."""
    rule = rule_for(family, consumer)
    return rule is not None and rule.norm_of == "inputs"


def stem_in_layout(layout: str, family: str, module: str) -> str | None:
    """Return the stem of the key under which a layout stores a module; None if it has no name for it."""
    component, path = module.split(".", 1)
    if layout == "diffusers":
        return module
    if component.startswith("text_encoder"):
        if layout == "native":
            return module
        return f"{text_prefixes(family)[component]}_{path.replace('.', '_')}"
    native = native_path(family, component, path, layout)
    if native is None:
        return None
    return f"lora_unet_{native.replace('.', '_')}" if layout == "kohya" else f"diffusion_model.{native}"


def native_path(family: str, component: str, path: str, layout: str = "native") -> str | None:
    """Return the name of a denoiser's module in the published network; None if it is not known.

    Of a U-Net kohya's layout has diffusers' names.
    """
    if component == "unet":
        network = re.sub("-inpaint$", "", family)
        return path if layout == "kohya" else unet_names.ldm_module(path, network)
    if (native := native_names.native_module(family, path)) is not None:
        return native.name
    return path if native_names.has_native_names(family) else None


def text_prefixes(family: str) -> dict[str, str]:
    """Return kohya's prefix of each text encoder."""
    is_single = network_of(family).startswith("sd15")
    return {
        "text_encoder": "lora_te" if is_single else "lora_te1",
        "text_encoder_2": "lora_te2",
        "text_encoder_3": "lora_te3",
    }


def unsupported_in_layout(family: str, consumer: str, layout: str, modules: Iterable[str]) -> list[str]:
    """Return the modules `<component>.<module>` that a consumer would not find in a file of a layout."""
    rule = rule_for(family, consumer)
    if rule is None or layout not in rule.layouts:
        return sorted(modules)
    return sorted(module for module in modules if not _is_read(rule, layout, family, module))


def _is_read(rule: LoaderRule, layout: str, family: str, module: str) -> bool:
    stem = stem_in_layout(layout, family, module)
    layer = find_layer(stem, rule, family) if stem else None
    return layer is not None and module in layer.modules


def layout_for(family: str, consumer: str, modules: Sequence[str]) -> str | None:
    """Return the first layout in which a consumer reads every module; None if there is none."""
    rule = rule_for(family, consumer)
    layouts = rule.layouts if rule else ()
    return next(
        (layout for layout in layouts if not unsupported_in_layout(family, consumer, layout, modules)), None
    )


def unsupported_modules(family: str, consumer: str, modules: Iterable[str]) -> list[str]:
    """Return the modules of an adapter that a consumer would ignore in each layout that it reads."""
    rule, names = rule_for(family, consumer), list(modules)
    if rule is None:
        return sorted(names)
    ignored = [unsupported_in_layout(family, consumer, layout, names) for layout in rule.layouts]
    return min(ignored, key=len)


def supporting_consumers(family: str, modules: Iterable[str]) -> tuple[str, ...]:
    """Return the programs that `lorakit export` writes for and that read every module of an adapter."""
    names = list(modules)
    return tuple(consumer for consumer in CONSUMERS if layout_for(family, consumer, names) is not None)


def check_consumer(family: str, consumer: str) -> None:
    """Raise ConfigError if a consumer reads no adapters of the family; for use before training."""
    if consumer not in loader_rules(family):
        raise unsupported_error(family, consumer, (), "export")


def unsupported_error(family: str, consumer: str, modules: Iterable[str], where: str) -> ConfigError:
    """Return the error for a consumer that cannot read an adapter, or would ignore some of its modules."""
    rules, modules = loader_rules(family), list(modules)
    if consumer not in rules:
        return ConfigError(
            f"no layout of {family} adapters is known to load in {consumer}",
            where=where,
            remedy=f"consumers of {family}: {', '.join(name for name in CONSUMERS if name in rules)}",
        )
    ignored = unsupported_modules(family, consumer, modules)
    module_names = [name.split(".", 1)[1] for name in ignored[:5]]
    others = supporting_consumers(family, modules)
    remedy = "train the default targets (attention)" + (
        f", or export for {' or '.join(others)}" if others else ""
    )
    if consumer == "a1111" and "comfyui" in others:
        remedy += "; Forge, unlike A1111, reads the file for comfyui"
    return ConfigError(
        f"{consumer} would ignore {len(ignored)} modules, first {', '.join(module_names)}",
        where=where,
        remedy=remedy,
    )


def answer(reading: Reading) -> LoadAnswer:
    """Return the answer for one reading of a file."""
    if reading.refusal:
        return LoadAnswer("no", reading.refusal)
    if not reading.modules:
        first, reason = next(iter(reading.ignored.items()), ("", "the file has no tensors"))
        return LoadAnswer("no", f"it reads none of {len(reading.ignored)} tensors, first {first}: {reason}")
    if reading.ignored:
        first, reason = next(iter(reading.ignored.items()))
        count = f"{len(reading.ignored)} of {reading.num_keys} tensors"
        return LoadAnswer("partly", f"it ignores {count}, first {first}: {reason}")
    if reading.problems:
        return LoadAnswer("partly", f"{reading.problems[0]}{_others(reading.problems)}")
    return LoadAnswer("yes", reading.rule.notes)


def _others(problems: Sequence[str]) -> str:
    return f", and {len(problems) - 1} more" if len(problems) > 1 else ""


def fitting_families(tensors: Tensors, consumer: str) -> tuple[str, ...]:
    """Return the families in which a consumer reads most keys of a file; none if it reads no key in any."""
    used = {}
    for family, rule in ALL_CONSUMERS[consumer].rules.items():
        reading = read_tensors(tensors, rule, family)
        used[family] = reading.num_keys - len(reading.ignored)
    most = max(used.values(), default=0)
    return tuple(family for family, count in used.items() if most and count == most)


def load_answer(
    tensors: Tensors, consumer: str, families: Sequence[str], metadata: Mapping[str, str] | None = None
) -> LoadAnswer:
    """Return whether a consumer loads a file that belongs to one of `families`.

    Where all families give the same answer, that is the answer, whatever the family.
    """
    if not families:
        return LoadAnswer("no", "it reads none of the tensors in any family")
    answers: dict[str, LoadAnswer] = {}
    for family in families:
        rule = rule_for(family, consumer)
        answers[family] = (
            LoadAnswer("no", "it reads no adapters of this family")
            if rule is None
            else answer(read_tensors(tensors, rule, family, metadata))
        )
    if len({result.word for result in answers.values()}) == 1:
        return next(iter(answers.values()))
    texts = "; ".join(f"as {family} {result.word}" for family, result in answers.items())
    return LoadAnswer("unknown", f"{texts}; give --family")
