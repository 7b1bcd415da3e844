"""Tests that take minutes run only with LORAKIT_LONG=1."""

from __future__ import annotations

import os

import pytest

IS_LONG = bool(os.environ.get("LORAKIT_LONG"))
long = pytest.mark.skipif(not IS_LONG, reason="takes minutes; set LORAKIT_LONG=1")
