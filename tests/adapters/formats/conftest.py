"""A finished run's adapter."""

from __future__ import annotations

import pytest

from tests.adapters.formats.runs import train


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "adapter.safetensors"
    train("sd3", path)
    return path
