"""A model of how ComfyUI and Forge load an adapter file: the weight of each key, and its change.

It was compared with their own loaders outside the test suite; see the README's table.
"""

from __future__ import annotations

import re

import torch

# By family: a pattern of the native module, and the diffusers modules in it, from top to bottom.
QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _parts(block, *names):
    return [rf"{block}.{name}" for name in names]


FUSED = {
    "lumina2": [
        (r"(layers|\w+_refiner)\.(\d+)\.attention\.qkv", _parts(r"\1.\2.attn", *QKV)),
        (r"(layers|\w+_refiner)\.(\d+)\.attention\.out", [r"\1.\2.attn.to_out.0"]),
    ],
    "sd3": [
        (r"joint_blocks\.(\d+)\.x_block\.(attn2?)\.qkv", _parts(r"transformer_blocks.\1.\2", *QKV)),
        (r"joint_blocks\.(\d+)\.context_block\.attn\.qkv",
         _parts(r"transformer_blocks.\1.attn", *ADDED)),
        (r"joint_blocks\.(\d+)\.x_block\.(attn2?)\.proj", [r"transformer_blocks.\1.\2.to_out.0"]),
        (r"joint_blocks\.(\d+)\.context_block\.attn\.proj", [r"transformer_blocks.\1.attn.to_add_out"]),
    ],
    "chroma": [
        (r"double_blocks\.(\d+)\.img_attn\.qkv", _parts(r"transformer_blocks.\1.attn", *QKV)),
        (r"double_blocks\.(\d+)\.txt_attn\.qkv", _parts(r"transformer_blocks.\1.attn", *ADDED)),
        (r"double_blocks\.(\d+)\.img_attn\.proj", [r"transformer_blocks.\1.attn.to_out.0"]),
        (r"double_blocks\.(\d+)\.txt_attn\.proj", [r"transformer_blocks.\1.attn.to_add_out"]),
        (r"single_blocks\.(\d+)\.linear1",
         _parts(r"single_transformer_blocks.\1", *_parts("attn", *QKV), "proj_mlp")),
    ],
    "hunyuan-dit": [
        (r"blocks\.(\d+)\.attn1\.Wqkv", [rf"blocks.\1.attn1.to_{x}" for x in "qkv"]),
        (r"blocks\.(\d+)\.attn2\.q_proj", [r"blocks.\1.attn2.to_q"]),
        (r"blocks\.(\d+)\.attn2\.kv_proj", [r"blocks.\1.attn2.to_k", r"blocks.\1.attn2.to_v"]),
        (r"blocks\.(\d+)\.(attn[12])\.out_proj", [r"blocks.\1.\2.to_out.0"]),
    ],
    "ernie-image": [(r"(layers\.\d+\.self_attention\.to_\w+(\.0)?)", [r"\1"])],
}  # fmt: skip
FUSED["hunyuan-image"] = [
    *FUSED["chroma"],
    (
        r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn\.qkv",
        [rf"context_embedder.token_refiner.refiner_blocks.\1.attn.to_{x}" for x in "qkv"],
    ),
    (
        r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn\.proj",
        [r"context_embedder.token_refiner.refiner_blocks.\1.attn.to_out.0"],
    ),
]
FUSED["hunyuan-video"] = FUSED["hunyuan-image"]
FUSED["wan"] = [
    (r"blocks\.(\d+)\.self_attn\.([qkv])", [r"blocks.\1.attn1.to_\2"]),
    (r"blocks\.(\d+)\.self_attn\.o", [r"blocks.\1.attn1.to_out.0"]),
    (r"blocks\.(\d+)\.cross_attn\.([qkv])", [r"blocks.\1.attn2.to_\2"]),
    (r"blocks\.(\d+)\.cross_attn\.o", [r"blocks.\1.attn2.to_out.0"]),
]
FUSED["wan-i2v"] = [
    *FUSED["wan"],
    (r"blocks\.(\d+)\.cross_attn\.([kv])_img", [r"blocks.\1.attn2.add_\2_proj"]),
]
FUSED["anima"] = [
    (r"blocks\.(\d+)\.self_attn\.([qkv])_proj", [r"transformer_blocks.\1.attn1.to_\2"]),
    (r"blocks\.(\d+)\.self_attn\.output_proj", [r"transformer_blocks.\1.attn1.to_out.0"]),
    (r"blocks\.(\d+)\.cross_attn\.([qkv])_proj", [r"transformer_blocks.\1.attn2.to_\2"]),
    (r"blocks\.(\d+)\.cross_attn\.output_proj", [r"transformer_blocks.\1.attn2.to_out.0"]),
]
FUSED["hunyuan-video-1.5"] = FUSED["hunyuan-image"]
FUSED["ideogram4"] = [
    (r"layers\.(\d+)\.attention\.qkv", _parts(r"layers.\1.attention", *QKV)),
    (r"layers\.(\d+)\.attention\.o", [r"layers.\1.attention.to_out.0"]),
]
FUSED["cogvideox"] = [
    (r"blocks\.(\d+)\.([qkv])", [r"transformer_blocks.\1.attn1.to_\2"]),
    (r"blocks\.(\d+)\.attn_out", [r"transformer_blocks.\1.attn1.to_out.0"]),
]
FUSED["ltx-2"] = [(r"(transformer_blocks\.\d+\.\w+\.to_(?:q|k|v|out\.0))", [r"\1"])]
FUSED["ltx-video"] = [(r"(transformer_blocks\.\d+\.attn[12]\.to_(?:q|k|v|out\.0))", [r"\1"])]
_ENDINGS = re.compile(
    r"(.+?)\.(lora_[AB]\.weight|lora_(?:up|down)\.weight|alpha|dora_scale|reshape_weight|diff"
    r"|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)"
)


def modules_of(stem, family, modules):
    """Return the diffusers modules that a key changes, by the program's table."""
    if stem.startswith("lora_unet_") and family in FUSED:  # the published names, with underscores
        name = stem.removeprefix("lora_unet_")
        for pattern, parts in FUSED[family]:
            if parts != [r"\1"] and (match := re.fullmatch(pattern.replace(r"\.", "_"), name)):
                return [f"transformer.{match.expand(part)}" for part in parts]
        return [module for module in modules if module.split(".", 1)[1].replace(".", "_") == name]
    if stem.startswith("lora_"):
        kohya = {"unet": "lora_unet", "text_encoder": "lora_te1" if family == "sdxl" else "lora_te"}
        kohya["text_encoder_2"] = "lora_te2"
        spelled = {f"{kohya[m.split('.')[0]]}_{m.split('.', 1)[1].replace('.', '_')}": m for m in modules}
        return [spelled[stem]]
    if not stem.startswith("diffusion_model."):
        assert stem in modules
        return [stem]
    name = stem.removeprefix("diffusion_model.")
    for pattern, parts in FUSED[family]:
        if match := re.fullmatch(pattern, name):
            return [f"transformer.{match.expand(part)}" for part in parts]
    raise AssertionError(f"lora key not loaded: {stem}")


def differences(tensors, family, weights):
    """Return the difference that a file adds to each weight of `weights`, by `<component>.<module>`.

    Every key must be used.
    """
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        match = _ENDINGS.fullmatch(key)
        assert match, f"lora key not loaded: {key}"
        grouped.setdefault(match[1], {})[match[2]] = value.double()
    found = {}
    for stem, parts in grouped.items():
        names = modules_of(stem, family, weights)
        base = torch.cat([weights[name] for name in names]).double()
        added = _apply(parts, base) - base
        for name, rows in zip(names, added.split([len(weights[name]) for name in names]), strict=True):
            assert name not in found
            found[name] = rows
    return found


def _apply(parts, weight):
    left = dict(parts)
    if "reshape_weight" in left:
        assert left.pop("reshape_weight").tolist() == list(weight.shape)
    alpha, dora = left.pop("alpha", None), left.pop("dora_scale", None)
    if "diff" in left:
        return weight + left.pop("diff")
    if "hada_w1_a" in left:
        one, two = left["hada_w1_a"] @ left["hada_w1_b"], left["hada_w2_a"] @ left["hada_w2_b"]
        assert alpha is None
        return weight + (one * two).reshape(weight.shape)
    if any(name.startswith("lokr") for name in left):
        factors = [
            left[f"lokr_w{n}"]
            if f"lokr_w{n}" in left
            else left[f"lokr_w{n}_a"] @ left[f"lokr_w{n}_b"].flatten(1)
            for n in (1, 2)
        ]
        assert alpha is None
        one = factors[0].reshape(*factors[0].shape, *[1] * (factors[1].ndim - 2))
        return weight + torch.kron(one, factors[1]).reshape(weight.shape)
    up = left.pop("lora_B.weight", left.pop("lora_up.weight", None))
    down = left.pop("lora_A.weight", left.pop("lora_down.weight", None))
    scale = 1.0 if alpha is None else float(alpha) / len(down)
    merged = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    assert not left
    if dora is None:
        return merged
    length = (
        weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
    )  # of the base model, not of `merged`
    return merged * dora / length
