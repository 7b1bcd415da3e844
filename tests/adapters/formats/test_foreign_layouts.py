"""Layouts of other trainers: the answer for ComfyUI, the family, and conversions that keep the delta."""

from __future__ import annotations

import pytest

from lorakit.adapters.formats import LoraDelta, consumers, low_rank, read_adapter_file
from lorakit.adapters.formats.export import save_adapter
from lorakit.adapters.tools.inspect import inspect_adapter
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from tests.adapters.formats.foreign_layouts import LAYOUTS, build
from tests.long_tier import some_long

REFUSED = {
    "flux1 BFL control": "biases",
    "wan lightx2v": "norms",
    "sd15 ia3": "IA",
    "sd15 glora": "GLoRA",
}
"""Kinds that are not read, with a word of the error."""
LORA = [
    name
    for name, layout in LAYOUTS.items()
    if name not in REFUSED and layout.kind not in ("dora", "peft dora", "loha", "lokr")
]
SHORT = (
    "flux1 sd-scripts", "flux1 XLabs", "flux1 SimpleTuner doubled", "sdxl processor", "sdxl LoCon",
    "sd3 sd-scripts", "wan Fun", "hunyuan-video diffusion-pipe", "qwen-image Lightning", "z-image native",
)  # fmt: skip


@pytest.fixture
def file_of(tmp_path):
    def write(name):
        return storage.write_safetensors(tmp_path / "foreign.safetensors", build(LAYOUTS[name]), {})

    return write


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_answer_is_that_of_comfyuis_own_code(name):
    layout = LAYOUTS[name]
    result = consumers.load_answer(build(layout), "comfyui", layout.families[:1])
    assert result.word == layout.comfyui, result
    assert result.loads or result.reason


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in REFUSED])
def test_the_family_is_among_those_that_the_file_fits(file_of, name):
    families = read_adapter_file(file_of(name)).possible_families
    assert LAYOUTS[name].families[0] in families
    assert set(families) <= set(LAYOUTS[name].families)


@pytest.mark.parametrize("name", REFUSED)
def test_a_kind_that_is_not_read_is_named(file_of, name):
    with pytest.raises(DataError, match=REFUSED[name]) as caught:
        read_adapter_file(file_of(name))
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["flux1 BFL control", "wan lightx2v"])
def test_weights_beside_biases_and_norms_are_inspected_and_the_others_said(file_of, name):
    adapter = read_adapter_file(file_of(name), skip_biases_and_norms=True)
    described = inspect_adapter(adapter)
    assert described["types"]["lora"] >= 16
    assert any("a conversion refuses the file" in note for note in described["notes"])
    assert "yes" in described["consumers"]["comfyui"]
    assert LAYOUTS[name].families[0] in described["families"] or name == "flux1 BFL control"


@pytest.mark.parametrize("name", some_long(LORA, *SHORT))
def test_a_conversion_keeps_the_delta_weight_or_is_refused(file_of, tmp_path, name):
    """To each layout, and at least to one of them."""
    family = LAYOUTS[name].families[0]
    adapter = read_adapter_file(file_of(name), family)
    assert all(isinstance(delta, LoraDelta) for delta in adapter.deltas.values())
    written, refusals = 0, []
    for layout in ("diffusers", "native", "kohya"):
        out = tmp_path / f"{layout}.safetensors"
        try:
            save_adapter(adapter, out, layout)
        except ConfigError as error:
            refusals.append(error)
            continue
        written += 1
        again = read_adapter_file(out, family)
        for module, delta in adapter.deltas.items():
            assert low_rank.relative_error(delta, again.deltas[module], None) <= 1e-5, module
    assert written
    assert all(error.remedy for error in refusals)
