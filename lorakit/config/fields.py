"""Base class of recipe sections and the types of their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_RANK = 4096  # files that state a higher rank are refused too


def reject_blank_text(value: Any) -> Any:
    """Refuse text that is empty, or begins or ends with a space, or is not valid Unicode."""
    if isinstance(value, str) and (not value or value != value.strip()):
        raise ValueError("it is empty, or begins or ends with a space")
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):  # surrogates: foreign bytes
        raise ValueError("it contains a zero byte or bytes that are not UTF-8")
    return value


# Larger numbers can only be mistakes; the error says the limit.
MAX_STEPS = 10_000_000
MAX_BATCH_SIZE = 1024
MAX_ACCUMULATE = 10_000
# Strict: YAML's `yes` is not the number 1, and "16" is text.
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, le=10**9, strict=True)]
StepCount = Annotated[int, Field(gt=0, le=MAX_STEPS, strict=True)]
LearningRate = Annotated[float, Field(ge=1e-12, le=1e4, allow_inf_nan=False, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
StrippedPath = Annotated[Path, BeforeValidator(reject_blank_text)]
StrippedStr = Annotated[str, BeforeValidator(reject_blank_text)]
Rank = Annotated[int, Field(gt=0, le=MAX_RANK, strict=True)]


class RecipeSection(BaseModel):
    """A section of the recipe: refuses unknown keys, immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )
