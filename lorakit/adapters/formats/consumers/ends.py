"""Ends of keys by consumer, and the part of a module's adapter that each is."""

from __future__ import annotations

_PAIRS = {
    "lora_up.weight": "lora_down.weight",
    "lora_B.weight": "lora_A.weight",
    "lora.up.weight": "lora.down.weight",
    "lora_linear_layer.up.weight": "lora_linear_layer.down.weight",
    "lora_B": "lora_A",
    "lora_B.default.weight": "lora_A.default.weight",
}
"""Names of LoRA's two factors: up, down."""
_LOHA = {f"hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}
_LOKR = {f"lokr_{part}": f"lokr_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2")}
_OFT = {"oft_blocks": "oft_blocks", "rescale": "rescale"}
_GLORA = {f"{part}.weight": f"glora_{part}" for part in ("a1", "a2", "b1", "b2")}
_DIFFERENCES = {"diff": "full", "diff_b": "bias", "w_norm": "full", "b_norm": "bias"}


def _pairs(*ups: str) -> dict[str, str]:
    return {up: "up" for up in ups} | {_PAIRS[up]: "down" for up in ups}


COMFYUI = {
    **_pairs(*_PAIRS),
    "lora_mid.weight": "mid", "alpha": "alpha", "dora_scale": "magnitude", "reshape_weight": "reshape",
    **_LOHA, **_LOKR, **_OFT, **_GLORA, **_DIFFERENCES,
    "set_weight": "set",
}  # fmt: skip
"""All that ComfyUI reads; Forge has a copy of its loader."""
A1111 = {
    **_pairs("lora_up.weight"),
    "lora_mid.weight": "mid", "alpha": "alpha", "dora_scale": "magnitude",
    **_LOHA, **_LOKR, **_OFT, **_GLORA, **_DIFFERENCES,
    "weight": "ia3", "on_input": "ia3",
}  # fmt: skip
"""A1111's kinds of networks."""
DIFFUSERS = {
    **_pairs("lora_B.weight", "lora_linear_layer.up.weight"),
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "alpha": "alpha",
}  # fmt: skip
"""Dotted names of peft."""
KOHYA = {**_pairs("lora_up.weight"), "lora_mid.weight": "mid", "alpha": "alpha"}
"""LoRA as sd-scripts and musubi-tuner write it."""
DIFFUSERS_KOHYA = DIFFUSERS | KOHYA
"""All that diffusers reads for families whose loader converts kohya's or native names."""
WITH_LOKR = DIFFUSERS_KOHYA | _LOKR

UNREAD = {
    "lora_magnitude_vector": "magnitudes of peft's DoRA",
    "lora_magnitude_vector.weight": "magnitudes of peft's DoRA",
    "dora_scale": "magnitudes of DoRA",
    "oft_R.weight": "a rotation (peft's OFT)",
    "oft_R.scaled_oft": "a rotation (OneTrainer's OFT)",
    "lora_B.bias": "a bias",
    "diff_b": "a difference of a bias",
    "b_norm": "a difference of a bias",
    "diff": "a dense difference",
    "w_norm": "a difference of a norm",
    "set_weight": "a replaced weight",
    "reshape_weight": "a new shape",
    "on_input": "a scale of (IA)3",
    **dict.fromkeys(_LOHA, "a factor of LoHa"),
    **dict.fromkeys(_LOKR, "a factor of LoKr"),
    **dict.fromkeys(_GLORA, "a factor of GLoRA"),
    **dict.fromkeys(_OFT, "a rotation (LyCORIS' OFT)"),
    **dict.fromkeys(_pairs(*_PAIRS), "a factor of LoRA with this ending"),
    "lora_mid.weight": "a core of LoCon",
    "alpha": "an alpha",
}
"""A name for each kind of key that a consumer does not read, by its end."""
LEGACY_ENDS = {"_lora.up.weight": "up", "_lora.down.weight": "down"}
"""Ends of attention processors of diffusers before 0.20, which follow the module's name without a dot."""
