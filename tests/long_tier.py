"""Tests that take minutes run only with LORAKIT_LONG=1."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

IS_LONG = bool(os.environ.get("LORAKIT_LONG"))
long = pytest.mark.skipif(not IS_LONG, reason="takes minutes; set LORAKIT_LONG=1")


def some_long(values: Iterable[Any], *short: Any) -> list[Any]:
    """Return parameters of a test; those that are not among `short` run only with LORAKIT_LONG=1."""
    parameters = []
    for value in values:
        parts = value if isinstance(value, tuple) else (value,)
        parameters.append(value if value in short else pytest.param(*parts, marks=long))
    return parameters
