"""The size of the default adapter on published networks, built without memory or weights."""

from __future__ import annotations

import diffusers
import pytest
import torch

from lorakit import adapters
from lorakit.models.families import FAMILIES
from tests import tiny
from tests.models.families.common import family_of

FULL_SIZE = sorted(name for name, row in tiny.ROWS.items() if row.full)


def _adapter_size(class_name, config, targets):
    """Count adapted modules and parameters; some families share a network, which is built once."""
    key = repr((class_name, config, targets))
    if key not in _SIZES:
        with torch.device("meta"):
            network = getattr(diffusers, class_name)(**config)
            adapters.inject_adapter(network, rank=16, alpha=16, targets=targets)
        _SIZES[key] = adapters.count_trainable(network)
    return _SIZES[key]


_SIZES: dict[str, adapters.AdapterSize] = {}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_default_adapter_has_the_stated_size(name):
    family, full = family_of(name), tiny.ROWS[name].full
    size = _adapter_size(full.class_name, full.config, family.target_modules)
    assert size.num_modules == full.modules
    assert f"{size.num_parameters / 1e6:.1f}" == f"{full.millions_of_parameters:.1f}"
    assert f"{full.millions_of_parameters:.1f} M" in family.rank16_parameters


def test_every_family_is_measured():
    assert {family_of(name).name for name in FULL_SIZE} == {family.name for family in FAMILIES}
