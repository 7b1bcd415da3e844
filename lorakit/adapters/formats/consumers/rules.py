"""The terms in which the rules of a consumer are stated: how it spells modules, and which tensors it reads.

A key of an adapter file is `<prefix><module><end>`. A consumer looks up certain spellings of a module, each a
prefix with native or diffusers' names, and below each certain ends. What it does not look up, it ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Names(StrEnum):
    """The names of modules that a spelling uses."""

    NATIVE = "native"
    """Those of the published network, with its fused layers."""
    DIFFUSERS = "diffusers"
    """Those of diffusers' network, as far as it is in the tables of native names."""
    HUNYUAN = "hunyuan"
    """Hunyuan's published names, which ComfyUI renames."""
    LDM = "ldm"
    """Those of Stable Diffusion's published U-Net."""
    UNET = "unet"
    """Those of diffusers' U-Net."""
    PROCESSOR = "processor"
    """Those of diffusers' U-Net before 0.20, where layers of attention belong to a processor."""
    ANY = "any"
    """Every module of diffusers' network."""
    CLIP = "clip"
    """Layers of a CLIP text encoder."""
    T5 = "t5"
    """Layers of a T5 text encoder."""


class Alphas(StrEnum):
    """The effect of an alpha beside the factors of a module."""

    READ = "read"
    IGNORED = "ignored"
    REFUSED = "refused"
    """The consumer raises an error and loads nothing."""


@dataclass(frozen=True)
class Spelling:
    """One way in which a consumer looks up the modules of a network."""

    prefix: str
    names: Names
    separator: str = "."
    only: str = ".+"
    """Regular expression for the names in diffusers' network, or of native ones without a counterpart."""
    component: str = "transformer"


@dataclass(frozen=True)
class Conversion:
    """A layout of whole files, recognized by some keys, and the keys that a consumer reads instead."""

    marks: tuple[str, ...]
    """Keys that only such files have."""
    renames: tuple[tuple[str, str], ...]
    """Parts of keys and their replacements, in this order."""
    prefix: str = ""
    """Beginning of the new keys."""
    widens: bool = False
    """True if it also adds the new shape of a widened first layer."""

    def new_key(self, key: str) -> str:
        """Return the key that the consumer looks up instead of a file's key."""
        for part, replacement in self.renames:
            key = key.replace(part, replacement)
        return self.prefix + key


@dataclass(frozen=True)
class LoaderRule:
    """The rule by which one consumer reads the adapters of one family."""

    layouts: tuple[str, ...]
    """Layouts of ours that it reads, the preferred one first: diffusers, native or kohya."""
    spellings: tuple[Spelling, ...]
    ends: Mapping[str, str]
    """Ends of keys that it reads, and the part of a module's adapter that each is."""
    text_encoders: tuple[str, ...] = ()
    """CLIP text encoders that it looks up."""
    alphas: Mapping[str, Alphas] = field(default_factory=dict)
    """The effect of alphas by beginning of the key; below others they are read."""
    reads_peft_metadata: bool = False
    """True if it reads the alphas that diffusers writes into the metadata."""
    conversions: tuple[Conversion, ...] = ()
    """Layouts of whole files whose keys it renames first."""
    norm_of: str = "base"
    """The norm that DoRA's magnitudes are divided by: of the weight (base), the merged one, or the inputs."""
    one_alpha: bool = False
    """True if the first alpha in a file counts for all modules."""
    first_width: tuple[str, int] | None = None
    """A module that the file must widen to this number of inputs, with `reshape_weight`."""
    notes: str = ""

    @property
    def layout(self) -> str:
        """The preferred layout."""
        return self.layouts[0]


@dataclass(frozen=True)
class Consumer:
    """A program that loads adapters, with its rule for each family that it reads."""

    name: str
    title: str
    version: str
    rules: Mapping[str, LoaderRule] = field(default_factory=dict)
    is_export_target: bool = False
    """True if `lorakit export --for` writes for it."""
