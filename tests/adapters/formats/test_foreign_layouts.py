"""Layouts of other trainers: the answer for ComfyUI, the family, and conversions that keep the delta."""

from __future__ import annotations

import pytest

from lorakit.adapters.formats import consumers
from tests.adapters.formats.foreign_layouts import LAYOUTS, build


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_answer_is_that_of_comfyuis_own_code(name):
    layout = LAYOUTS[name]
    result = consumers.load_answer(build(layout), "comfyui", layout.families[:1])
    assert result.word == layout.comfyui, result
    assert result.loads or result.reason
