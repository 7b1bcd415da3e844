"""Recipe sections `adapter`, `textual_inversion` and `slider`: which parameters are trained."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lorakit.config.fields import (
    LearningRate,
    PositiveFloat,
    Rank,
    RecipeSection,
    StrippedStr,
    reject_blank_text,
)


def _pattern(value: Any) -> Any:
    """Check a module-name suffix, or `re:` followed by a valid regular expression."""
    value = reject_blank_text(value)
    if isinstance(value, str) and value.startswith("re:"):
        try:
            re.compile(value.removeprefix("re:"))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a valid regular expression: {error}") from error
    return value


def _distinct_names(names: list[str]) -> list[str]:
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{repeated} is named twice")
    return names


ModulePattern = Annotated[str, BeforeValidator(_pattern)]
TextEncoderNames = Annotated[list[StrippedStr], Field(min_length=1), AfterValidator(_distinct_names)]


class AdapterConfig(RecipeSection):
    """Adapter method, size and target modules."""

    type: Literal["lora", "rslora", "dora", "lokr", "loha", "oft", "none"] = "lora"
    """Adapter method; `none` trains only `textual_inversion`."""
    rank: Rank = 16
    """Rank of the low-rank update; for oft the block size."""
    alpha: PositiveFloat = 16
    """The update is scaled by alpha / rank (rslora: alpha / sqrt(rank); oft has no alpha)."""
    targets: Literal["attention"] | Annotated[list[ModulePattern], Field(min_length=1)] = "attention"
    """`attention` (the attention layers, by the family's own rule), or a list of module-name suffixes; an
    entry that starts with `re:` is a regular expression for the full name. Each entry must match a module."""
    blocks: Annotated[list[StrippedStr], Field(min_length=1)] | None = None
    """Adapt only these blocks, such as `mid_block` or `transformer_blocks.4-11`; null adapts all."""
    conv_rank: Rank | None = None
    """Also adapt the convolutions inside blocks, with this rank and the same alpha / rank; null does not."""
    rank_pattern: dict[ModulePattern, Rank] = Field(default_factory=dict)
    """Rank of single modules, by name suffix or `re:` expression; the first match counts."""
    alpha_pattern: dict[ModulePattern, PositiveFloat] = Field(default_factory=dict)
    """Alpha of single modules, by name suffix or `re:` expression; the first match counts."""
    init: Literal["kaiming", "gaussian", "pissa", "olora"] = "kaiming"
    """Initial values: random A (kaiming, gaussian) with B = 0; or A and B from the principal part of the
    base weight (pissa arXiv:2404.02948, olora 2406.01775), which is subtracted again and doubles the saved
    rank."""
    factor: Annotated[int, Field(gt=0, le=65_536, strict=True)] | None = None
    """lokr: size of the small factor; null makes both factors about equal."""
    text_encoder: Annotated[bool, Field(strict=True)] | TextEncoderNames = False
    """Also adapt the attention of the CLIP text encoders (Stable Diffusion 1.5, 2 and XL), with the same
    type, rank and alpha: true adapts all, a list only some: `[text_encoder]`, `[text_encoder_2]` (XL)."""
    text_encoder_lr: LearningRate | None = None
    """Peak learning rate of the text encoders; null means optimizer.lr."""
    denoiser: Annotated[bool, Field(strict=True)] = True
    """False adapts only the text encoders of `text_encoder`."""

    def adapts_text_encoder(self, component: str) -> bool:
        """Return True if the text encoder with this name gets an adapter."""
        chosen = self.text_encoder
        return chosen if isinstance(chosen, bool) else component in chosen

    @model_validator(mode="after")
    def _check_denoiser(self) -> AdapterConfig:
        if self.denoiser:
            return self
        if not self.text_encoder:
            raise ValueError(
                "denoiser false leaves nothing to adapt: set text_encoder, or leave denoiser out"
                " (type none trains only textual_inversion)"
            )
        chosen: dict[str, object] = {
            "targets": self.targets != "attention",
            "blocks": self.blocks,
            "conv_rank": self.conv_rank,
        }
        chosen |= {"rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}
        if keys := [key for key, is_set in chosen.items() if is_set]:
            raise ValueError(
                f"{keys[0]} chooses modules of the denoiser, which denoiser false does not adapt"
            )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> AdapterConfig:
        low_rank = ("lora", "rslora")
        unsupported = {
            f"init {self.init}": self.init != "kaiming" and self.type not in low_rank,
            "text_encoder": bool(self.text_encoder) and self.type == "none",
            "factor": self.factor is not None and self.type != "lokr",
            "targets": self.targets != "attention" and self.type == "none",
            "blocks": self.blocks is not None and self.type == "none",
            "alpha": self.alpha != 16 and self.type == "oft",
            "conv_rank": self.conv_rank is not None and self.type in ("oft", "none"),
            "rank_pattern": bool(self.rank_pattern) and self.type in ("oft", "none"),
            "alpha_pattern": bool(self.alpha_pattern) and self.type in ("oft", "none"),
        }
        if keys := [key for key, is_set in unsupported.items() if is_set]:
            raise ValueError(f"type {self.type} has no {keys[0]}: leave it out, or choose another type")
        if self.text_encoder_lr is not None and not self.text_encoder:
            raise ValueError(
                "adapter.text_encoder_lr has no effect without text_encoder: set it, or leave both out"
            )
        return self


class TextualInversionConfig(RecipeSection):
    """A new token that the CLIP text encoders learn as vectors of its own (arXiv:2208.01618)."""

    token: Annotated[StrippedStr, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
    """The token as it is written in captions and prompts: lower-case letters, digits and hyphens."""
    initializer_token: StrippedStr
    """A word that the base model knows, such as `dog`; its embedding is the initial value."""
    num_vectors: Annotated[int, Field(gt=0, le=32, strict=True)] = 1
    """Number of vectors; each takes one token of the prompt."""
    lr: LearningRate = 5e-3
    """Peak learning rate of the vectors."""


class SliderConfig(RecipeSection):
    """Concept slider (arXiv:2311.12092): the adapter's strength moves an image between two opposite prompts.

    Needs no dataset: the base model generates the training images.
    """

    target_prompt: StrippedStr
    """Prompt the slider acts on, such as `a photo of a person`; the training images are generated from it."""
    positive_prompt: StrippedStr
    """Prompt of the positive direction, such as `a photo of an old person`: strengths above zero."""
    negative_prompt: StrippedStr
    """Prompt of the negative direction, such as `a photo of a young person`: strengths below zero."""
    guidance_scale: PositiveFloat = 1.0
    """Scale of the difference between the two predictions that strength 1 learns."""
    num_images: Annotated[int, Field(gt=0, le=10_000, strict=True)] = 32
    """Number of training images that the base model generates."""

    @property
    def prompts(self) -> tuple[str, str]:
        """The positive and the negative prompt."""
        return self.positive_prompt, self.negative_prompt
