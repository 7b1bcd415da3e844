"""What the keys of a recipe are made of: a section, and the kinds of value. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_RANK = 4096  # a file that claims more is not believed either


def reject_blank_text(value: Any) -> Any:
    """A path or word without blanks at its ends, which nobody sees and nobody means."""
    if isinstance(value, str) and (not value or value != value.strip()):
        raise ValueError("it is empty or begins or ends with a blank")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):  # surrogates: foreign bytes
        raise ValueError("it holds a zero byte, or bytes that are not UTF-8")
    return value


# Strict: YAML's `yes` is not the number 1, and "16" is a text.
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, le=10**9, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
StrippedPath = Annotated[Path, BeforeValidator(reject_blank_text)]
StrippedStr = Annotated[str, BeforeValidator(reject_blank_text)]
Rank = Annotated[int, Field(gt=0, le=MAX_RANK, strict=True)]


class RecipeSection(BaseModel):
    """A part of the recipe: closed to unknown keys, frozen once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )
