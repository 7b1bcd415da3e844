"""The recipe's sections on what is trained: the adapter, a new word. Torch-free."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lorakit.config.fields import (
    PositiveFloat,
    PositiveInt,
    Rank,
    RecipeSection,
    StrippedStr,
    reject_blank_text,
)


def _pattern(value: Any) -> Any:
    """An ending of a module's name, or `re:` and an expression that can be read."""
    value = reject_blank_text(value)
    if isinstance(value, str) and value.startswith("re:"):
        try:
            re.compile(value.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"the expression cannot be read: {error}") from error
    return value


ModulePattern = Annotated[str, BeforeValidator(_pattern)]


class AdapterConfig(RecipeSection):
    """What is trained."""

    type: Literal["lora", "rslora", "dora", "lokr", "loha", "oft", "none"] = "lora"
    """Kind of adapter; `none` trains an `embedding` alone."""
    rank: Rank = 16
    """Rank of the low-rank update; of oft the side of the blocks that are turned."""
    alpha: PositiveFloat = 16
    """The update is scaled by alpha / rank (rslora: by alpha / root of rank; oft has none)."""
    targets: Literal["attention"] | Annotated[list[ModulePattern], Field(min_length=1)] = "attention"
    """`attention` (the family's own rule) or a list of module-name endings; `re:` begins an expression for
    the whole name."""
    blocks: Annotated[list[StrippedStr], Field(min_length=1)] | None = None
    """Only modules in these blocks, such as `mid_block` or `transformer_blocks.4-11`; none means all."""
    conv_rank: Rank | None = None
    """Also adapt the convolutions inside blocks, at this rank and the same alpha / rank; none leaves them."""
    rank_pattern: dict[ModulePattern, Rank] = Field(default_factory=dict)
    """Other ranks for some modules, by ending or `re:` expression; the first that matches counts."""
    alpha_pattern: dict[ModulePattern, PositiveFloat] = Field(default_factory=dict)
    """Other alphas for some modules, the same way."""
    init: Literal["kaiming", "gaussian", "pissa", "olora"] = "kaiming"
    """How A begins: random of two kinds; or A and B as the weight's own principal part, which is taken off
    again (arXiv:2404.02948, 2406.01775) and makes the file twice the rank."""
    factor: PositiveInt | None = None
    """lokr: the side of the small matrix; none makes both about equal."""
    text_encoder: Annotated[bool, Field(strict=True)] = False
    """Also adapt the attention of the CLIP text encoders (Stable Diffusion 1.5, 2 and XL), with the same
    type, rank and alpha."""
    text_encoder_lr: PositiveFloat | None = None
    """Their peak learning rate; none means optimizer.lr."""

    @model_validator(mode="after")
    def _suits_the_type(self) -> AdapterConfig:
        low = ("lora", "rslora")
        wrong = {
            f"init {self.init}": self.init != "kaiming" and self.type not in low,
            "text_encoder": self.text_encoder and self.type == "none",
            "text_encoder_lr": self.text_encoder_lr is not None and not self.text_encoder,
            "factor": self.factor is not None and self.type != "lokr",
            "alpha": self.alpha != 16 and self.type == "oft",
            "conv_rank": self.conv_rank is not None and self.type == "oft",
            "rank_pattern": bool(self.rank_pattern) and self.type == "oft",
            "alpha_pattern": bool(self.alpha_pattern) and self.type == "oft",
        }
        if given := [name for name, is_so in wrong.items() if is_so]:
            raise ValueError(f"type {self.type} has no {given[0]}: leave it out, or choose another type")
        return self


class TextualInversionConfig(RecipeSection):
    """A new word, taught to the CLIP text encoders as vectors of its own (textual inversion)."""

    token: Annotated[StrippedStr, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
    """The word, as it stands in captions and prompts: small letters, digits and dashes."""
    init: StrippedStr
    """A word that the base knows, whose meaning the new one begins with, such as `dog`."""
    vectors: Annotated[int, Field(gt=0, le=32, strict=True)] = 1
    """Vectors, which are as many tokens of a prompt."""
    lr: PositiveFloat = 5e-3
    """Its own peak learning rate."""


class SliderConfig(RecipeSection):
    """A pair of opposite prompts, between which the adapter's strength moves a picture; needs no images."""

    target: StrippedStr
    """What it acts on, such as `a photo of a person`; the base draws the pictures that it trains on."""
    positive: StrippedStr
    """More of it, such as `a photo of an old person`: strengths above zero."""
    negative: StrippedStr
    """Less of it, such as `a photo of a young person`: strengths below zero."""
    guidance: PositiveFloat = 1.0
    """How far strength 1 goes along the difference of the two."""
    pictures: Annotated[int, Field(gt=0, le=10_000, strict=True)] = 32
    """Pictures that the base draws."""

    @property
    def poles(self) -> tuple[str, str]:
        """The prompt of more and that of less."""
        return self.positive, self.negative
