"""The modules of a family's network, and the module that the stem of a key names in one spelling."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from lorakit.adapters.formats.consumers import unet_names
from lorakit.adapters.formats.consumers.rules import Names, Spelling
from lorakit.adapters.formats.native_same_names import NORMS, SAME_NAMED
from lorakit.adapters.formats.native_tables import NATIVE_NAMES, SAME_NETWORK


@dataclass(frozen=True)
class Layer:
    """A weight that a key names."""

    component: str
    native: str
    """Its name in the published network; in diffusers' where there is no other."""
    members: tuple[str, ...]
    """Diffusers' modules that it consists of, in order; empty for a weight without a counterpart."""
    is_native_spelling: bool = False
    """True if the key had the native name."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules `<component>.<module>`, in diffusers' names where there are such."""
        return tuple(f"{self.component}.{name}" for name in self.members or (self.native,))


@dataclass(frozen=True)
class _Template:
    native: str
    members: tuple[str, ...]


def network_of(family: str) -> str:
    """Return the family whose tables describe a family's network."""
    return SAME_NETWORK.get(family, family)


@cache
def _templates(family: str) -> tuple[_Template, ...]:
    network = network_of(family)
    rows = [_Template(row.native, tuple(row.members)) for row in NATIVE_NAMES.get(network, [])]
    same = [_Template(name, (name,)) for name in SAME_NAMED.get(network, [])]
    return (*rows, *same, *(_Template(name, ()) for name in NORMS.get(network, [])))


def is_known(family: str) -> bool:
    """Return True if all modules of a family's network are in the tables."""
    return bool(_templates(family))


def _regex(template: str, separator: str) -> re.Pattern[str]:
    text = template.replace(".", separator)
    return re.compile(r"(\d+)".join(re.escape(part) for part in text.split("{}")))


def _fill(template: str, numbers: tuple[str, ...]) -> str:
    pieces = template.split("{}")
    filled = pieces[0]
    for number, piece in zip(numbers, pieces[1:], strict=False):
        filled += number + piece
    return filled


@cache
def _patterns(family: str, names: Names, separator: str) -> list[tuple[re.Pattern[str], _Template]]:
    patterns = []
    for template in _templates(family):
        if names is Names.DIFFUSERS:
            patterns += [(_regex(member, separator), template) for member in template.members]
        else:
            native = _hunyuan_name(template.native) if names is Names.HUNYUAN else template.native
            patterns.append((_regex(native, separator), template))
    return patterns


def _hunyuan_name(native: str) -> str:
    """Return the published name of a HunyuanVideo module, from ComfyUI's."""
    name = f"{native}."
    for ours, theirs in (
        ("_mod.lin.", "_mod.linear."),
        ("_attn.qkv.", "_attn_qkv."),
        ("_attn.proj.", "_attn_proj."),
        ("mlp.0.", "mlp.fc1."),
        ("mlp.2.", "mlp.fc2."),
        (".modulation.lin.", ".modulation.linear."),
    ):
        name = name.replace(ours, theirs)
    return name.removesuffix(".")


def resolve(stem: str, spelling: Spelling, family: str) -> Layer | None:
    """Return the weight that the stem of a key names in a spelling; None if the spelling has no such name."""
    if not stem.startswith(spelling.prefix):
        return None
    layer = _RESOLVERS[spelling.names](stem.removeprefix(spelling.prefix), spelling, family)
    if layer is None or not re.fullmatch(spelling.only, layer.members[0] if layer.members else layer.native):
        return None
    return layer


def _resolve_transformer(name: str, spelling: Spelling, family: str) -> Layer | None:
    for pattern, template in _patterns(family, spelling.names, spelling.separator):
        if match := pattern.fullmatch(name):
            numbers = match.groups()
            members = tuple(_fill(member, numbers) for member in template.members)
            if spelling.names is Names.DIFFUSERS:
                dotted = next(m for m in members if m.replace(".", spelling.separator) == name)
                return Layer(spelling.component, dotted, (dotted,))
            native = _fill(template.native, numbers)
            return Layer(spelling.component, native, members, is_native_spelling=members != (native,))
    return None


_UNET_TABLES = {
    Names.UNET: unet_names.modules,
    Names.LDM: unet_names.ldm_modules,
    Names.PROCESSOR: unet_names.processor_modules,
}


def _resolve_unet(name: str, spelling: Spelling, family: str) -> Layer | None:
    module = _UNET_TABLES[spelling.names](spelling.separator).get(name)
    return None if module is None else Layer(spelling.component, module, (module,))


_NO_MODULE = re.compile(r"(base_model|model|diffusion_model|module|transformer|unet)\..*|.*\.\.+.*|.*[._]")


def _resolve_any(name: str, spelling: Spelling, family: str) -> Layer | None:
    is_module = re.fullmatch(r"[A-Za-z0-9_.-]+", name) and not _NO_MODULE.fullmatch(name)
    return Layer(spelling.component, name, (name,)) if is_module else None


_CLIP_LAYER = r"encoder{s}layers{s}(\d+){s}(self_attn|mlp){s}((?:q|k|v|out)_proj|fc[12])"
_T5_LAYER = (
    r"encoder{s}block{s}(\d+){s}layer{s}(\d+){s}(SelfAttention|DenseReluDense){s}(q|k|v|o|wi_0|wi_1|wi|wo)"
)


def _resolve_clip(name: str, spelling: Spelling, family: str) -> Layer | None:
    separator = spelling.separator
    pattern = f"text_model{separator}{_CLIP_LAYER}".replace("{s}", re.escape(separator))
    if match := re.fullmatch(pattern, name):
        module = "text_model.encoder.layers.{}.{}.{}".format(*match.groups())
        return Layer(spelling.component, module, (module,))
    if name == "text_projection" and spelling.separator == "_":
        return Layer(spelling.component, name, (name,))
    return None


def _resolve_t5(name: str, spelling: Spelling, family: str) -> Layer | None:
    if match := re.fullmatch(_T5_LAYER.replace("{s}", re.escape(spelling.separator)), name):
        module = "encoder.block.{}.layer.{}.{}.{}".format(*match.groups())
        return Layer(spelling.component, module, (module,))
    return None


_RESOLVERS: dict[Names, Callable[[str, Spelling, str], Layer | None]] = {
    Names.NATIVE: _resolve_transformer,
    Names.HUNYUAN: _resolve_transformer,
    Names.DIFFUSERS: _resolve_transformer,
    Names.UNET: _resolve_unet,
    Names.LDM: _resolve_unet,
    Names.PROCESSOR: _resolve_unet,
    Names.ANY: _resolve_any,
    Names.CLIP: _resolve_clip,
    Names.T5: _resolve_t5,
}
