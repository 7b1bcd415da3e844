"""Names of optimizers: ours for the usual ones, dotted names for any class of an installed package."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from lorakit.config.fields import StrippedStr
from lorakit.core.nearest import did_you_mean

SCHEDULE_FREE = "schedulefree_adamw"
PRODIGY = "prodigy"
OPTIMIZER_NAMES = (
    "adamw",
    "adamw8bit",
    "paged_adamw8bit",
    "lion",
    "lion8bit",
    "paged_lion8bit",
    "ademamix8bit",
    "paged_ademamix8bit",
    "adafactor",
    "came",
    PRODIGY,
    SCHEDULE_FREE,
    "muon",
)
THREE_BETAS = ("ademamix8bit", "came")
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


def _check_name(name: str) -> str:
    if name not in OPTIMIZER_NAMES and not _DOTTED.fullmatch(name):
        raise ValueError(
            f"{name!r} is not one of {', '.join(OPTIMIZER_NAMES)}, and no dotted name of a class such as"
            f" torch.optim.RAdam{did_you_mean(name, OPTIMIZER_NAMES)}"
        )
    return name


OptimizerName = Annotated[StrippedStr, AfterValidator(_check_name)]
