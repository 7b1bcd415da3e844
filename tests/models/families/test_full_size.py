"""The default adapter on published networks, which are built without memory and without weights."""

from __future__ import annotations

import diffusers
import pytest
import torch

from lorakit import adapters
from lorakit.models.families import FAMILIES
from tests import tiny
from tests.models.families.common import family_of

SIZED = sorted(name for name, row in tiny.ROWS.items() if row.full)


def _counted(kind, settings, targets):
    """Some families share a network, which is built once."""
    key = repr((kind, settings, targets))
    if key not in _COUNTED:
        with torch.device("meta"):
            network = getattr(diffusers, kind)(**settings)
            adapters.inject_adapter(network, rank=16, alpha=16, targets=targets)
        _COUNTED[key] = adapters.count_trainable(network)
    return _COUNTED[key]


_COUNTED: dict[str, tuple[int, int]] = {}


@pytest.mark.parametrize("name", SIZED)
def test_targets_and_sizes(name):
    family, full = family_of(name), tiny.ROWS[name].full
    modules, numbers = _counted(full.kind, full.settings, family.targets)
    assert modules == full.modules
    assert f"{numbers / 1e6:.1f}" == f"{full.millions:.1f}"
    assert f"{full.millions:.1f} M" in family.rank16


def test_every_family_is_measured():
    assert {family_of(name).name for name in SIZED} == {family.name for family in FAMILIES}
