"""Requests in the dialect of a server: parameters that it refuses are left out or get another name."""

from __future__ import annotations

import re
from typing import Any

# Optional parameters, and the words by which a server refuses one. A required one is replaced, not left out.
OPTIONAL_PARAMETERS = (
    "top_logprobs",
    "logprobs",
    "temperature",
    "seed",
    "max_completion_tokens",
    "max_tokens",
)
_OTHER_NAME = {"max_tokens": "max_completion_tokens"}
_REFUSES_PARAMETER = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|not allowed|not permitted|extra|unexpected|invalid"
    r"|deprecated|does not (?:take|accept|exist)|only the default",
    re.IGNORECASE,
)
WANTS_STREAM = re.compile(
    r"stream\W+(?:must|should|needs|has) (?:to )?be|only supports? stream|stream.{0,20}required",
    re.IGNORECASE,
)


def in_dialect(body: dict[str, Any], refused: frozenset[str], streams: bool) -> dict[str, Any]:
    """Return the body of a request without refused parameters, or with another name for them."""
    adapted: dict[str, Any] = {}
    for name, value in body.items():
        chosen: str | None = name
        while chosen in refused:
            chosen = _OTHER_NAME.get(chosen)
        if chosen:
            adapted[chosen] = value
    return adapted | ({"stream": True} if streams else {})


def refused_parameter(message: str, body: dict[str, Any]) -> str | None:
    """Return the optional parameter of a request that an error refuses; None for another error."""
    if not _REFUSES_PARAMETER.search(message):
        return None
    named = [name for name in OPTIONAL_PARAMETERS if name in body]
    return next((name for name in named if re.search(rf"(?<![\w]){name}(?![\w])", message)), None)
