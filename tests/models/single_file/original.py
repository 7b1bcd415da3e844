"""Tiny pipelines in their authors' checkpoint layouts: diffusers' names converted back, by hand.

Latent diffusion (SD 1.5, SDXL): https://github.com/CompVis/latent-diffusion; SD 3: `joint_blocks`; Flux:
`double_blocks`. They have fused queries, keys and values, other orders of shift and scale, and convolutions
for matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

State = dict[str, torch.Tensor]
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for new, old in table.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(new)}(?=\.)", old, name)
    return name


def unet(model: Any) -> State:
    """Return a U-Net in latent diffusion's names."""
    each = model.config.layers_per_block + 1
    crossed = {i for i, kind in enumerate(model.config.up_block_types) if "CrossAttn" in kind}

    def rename(name: str) -> str:
        if match := re.match(r"down_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
            if kind == "downsamplers":
                return f"input_blocks.{(block + 1) * each}.0.op.{rest.removeprefix('conv.')}"
            position = f"input_blocks.{1 + block * each + layer}.{int(kind == 'attentions')}"
        elif match := re.match(r"up_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
            block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
            if kind == "upsamplers":
                return f"output_blocks.{(block + 1) * each - 1}.{1 + (block in crossed)}.{rest}"
            position = f"output_blocks.{block * each + layer}.{int(kind == 'attentions')}"
        elif match := re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", name):
            kind, rest = match[1], match[3]
            position = f"middle_block.{1 if kind == 'attentions' else 2 * int(match[2])}"
        else:
            return _replaced(name, _ENDS)
        return f"{position}.{_replaced(rest, _RESNET) if kind == 'resnets' else rest}"

    return {f"model.diffusion_model.{rename(name)}": value for name, value in model.state_dict().items()}


def vae(model: Any, prefix: str = "first_stage_model.") -> State:
    """Return a VAE in latent diffusion's names; its attention matrices are 1 x 1 convolutions."""
    last = len(model.config.block_out_channels) - 1
    tensors = {}
    for name, value in model.state_dict().items():
        old = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        old = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", old)
        old = re.sub(
            r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", old
        )
        old = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", old)
        old = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", old)
        old = old.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0" in old:
            old = _replaced(old.replace("mid_block.attentions.0", "mid.attn_1"), _ATTENTION)
            value = value[:, :, None, None] if value.ndim == 2 else value
        tensors[prefix + old] = value
    return tensors


def clip(model: Any, prefix: str) -> State:
    """Return OpenAI's CLIP under a prefix, in the names that transformers had when checkpoints were made."""
    tensors = {}
    for name, value in model.state_dict().items():
        full_name = name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"
        tensors[prefix + full_name] = value
    return tensors


def open_clip(model: Any, prefix: str) -> State:
    """Return open_clip's names: queries, keys and values in one matrix, the projection transposed."""
    state = {name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    tensors = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }
    table = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}
    for end in ("weight", "bias"):
        tensors[f"ln_final.{end}"] = state[f"final_layer_norm.{end}"]
        for layer in range(model.config.num_hidden_layers):
            old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            fused = [state[f"{old}self_attn.{name}_proj.{end}"] for name in "qkv"]
            tensors[f"{new}attn.in_proj_{end}"] = torch.cat(fused)
            tensors[f"{new}attn.out_proj.{end}"] = state[f"{old}self_attn.out_proj.{end}"]
            for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
                tensors[f"{new}{_replaced(name + '.', table)}{end}"] = state[f"{old}{name}.{end}"]
    return {prefix + name: value for name, value in tensors.items()}


def _swap_halves(value: torch.Tensor) -> torch.Tensor:
    """Turn (scale, shift) into (shift, scale)."""
    return torch.cat(value.chunk(2)[::-1])


def _fuse(state: State, names: list[str]) -> torch.Tensor:
    return torch.cat([state.pop(name) for name in names])


def _rename(state: State, table: Mapping[str, str], swapped: tuple[str, ...]) -> State:
    """Rename module paths by regular expressions, and swap the halves of those listed (by their old path)."""
    tensors = {}
    for name, value in state.items():
        path, _, end = name.rpartition(".")
        old = next(
            (re.sub(pattern, new, path) for pattern, new in table.items() if re.fullmatch(pattern, path)),
            None,
        )
        assert old is not None, name
        # norms have a scale in these files
        old_name = old if old == "pos_embed" else f"{old}.{'scale' if old.endswith('_norm') else end}"
        tensors[old_name] = _swap_halves(value) if old.startswith(swapped) else value
    return tensors


_FINAL = {r"proj_out": "final_layer.linear", r"norm_out\.linear": "final_layer.adaLN_modulation.1"}


def sd3(model: Any) -> State:
    """Return Stable Diffusion 3's transformer in its original names."""
    state, last = model.state_dict(), model.config.num_layers - 1
    for block in range(last + 1):
        own, new = f"transformer_blocks.{block}.", f"joint_blocks.{block}."
        kinds = {"x_block.attn": ("attn.to_q", "attn.to_k", "attn.to_v")}
        kinds["context_block.attn"] = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
        if block in model.config.dual_attention_layers:
            kinds["x_block.attn2"] = ("attn2.to_q", "attn2.to_k", "attn2.to_v")
        for end in ("weight", "bias"):
            for kind, names in kinds.items():
                state[f"{new}{kind}.qkv.{end}"] = _fuse(state, [f"{own}{name}.{end}" for name in names])
    block = r"transformer_blocks\.(\d+)\."
    x, text = r"joint_blocks.\1.x_block.", r"joint_blocks.\1.context_block."
    table = {
        r"pos_embed": "pos_embed",
        r"pos_embed\.proj": "x_embedder.proj",
        r"time_text_embed\.timestep_embedder\.linear_1": "t_embedder.mlp.0",
        r"time_text_embed\.timestep_embedder\.linear_2": "t_embedder.mlp.2",
        r"time_text_embed\.text_embedder\.linear_1": "y_embedder.mlp.0",
        r"time_text_embed\.text_embedder\.linear_2": "y_embedder.mlp.2",
        r"context_embedder": "context_embedder",
        block + r"(attn2?)\.norm_([qk])": x + r"\2.ln_\3",
        block + r"attn\.norm_added_([qk])": text + r"attn.ln_\2",
        block + r"(attn2?)\.to_out\.0": x + r"\2.proj",
        block + r"attn\.to_add_out": text + "attn.proj",
        block + r"norm1\.linear": x + "adaLN_modulation.1",
        block + r"norm1_context\.linear": text + "adaLN_modulation.1",
        block + r"ff\.net\.0\.proj": x + "mlp.fc1",
        block + r"ff\.net\.2": x + "mlp.fc2",
        block + r"ff_context\.net\.0\.proj": text + "mlp.fc1",
        block + r"ff_context\.net\.2": text + "mlp.fc2",
        r"(joint_blocks\..*)": r"\1",
        **_FINAL,
    }
    swapped = ("final_layer.adaLN", f"joint_blocks.{last}.context_block.adaLN")
    return {f"model.diffusion_model.{n}": v for n, v in _rename(state, table, swapped).items()}


def flux(model: Any) -> State:
    """Return Flux.1's transformer in its original names; such files have no other component and no prefix."""
    state = model.state_dict()
    for end in ("weight", "bias"):
        for block in range(model.config.num_layers):
            own, new = f"transformer_blocks.{block}.attn.", f"double_blocks.{block}."
            names = [f"{own}to_{name}.{end}" for name in "qkv"]
            state[f"{new}img_attn.qkv.{end}"] = _fuse(state, names)
            names = [f"{own}add_{name}_proj.{end}" for name in "qkv"]
            state[f"{new}txt_attn.qkv.{end}"] = _fuse(state, names)
        for block in range(model.config.num_single_layers):
            own = f"single_transformer_blocks.{block}."
            names = [*(f"{own}attn.to_{name}.{end}" for name in "qkv"), f"{own}proj_mlp.{end}"]
            state[f"single_blocks.{block}.linear1.{end}"] = _fuse(state, names)
    double, single = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
    image, text = r"double_blocks.\1.img_", r"double_blocks.\1.txt_"
    table = {
        r"time_text_embed\.timestep_embedder\.linear_1": "time_in.in_layer",
        r"time_text_embed\.timestep_embedder\.linear_2": "time_in.out_layer",
        r"time_text_embed\.text_embedder\.linear_1": "vector_in.in_layer",
        r"time_text_embed\.text_embedder\.linear_2": "vector_in.out_layer",
        r"time_text_embed\.guidance_embedder\.linear_1": "guidance_in.in_layer",
        r"time_text_embed\.guidance_embedder\.linear_2": "guidance_in.out_layer",
        r"context_embedder": "txt_in",
        r"x_embedder": "img_in",
        double + r"norm1\.linear": image + "mod.lin",
        double + r"norm1_context\.linear": text + "mod.lin",
        double + r"attn\.norm_q": image + "attn.norm.query_norm",
        double + r"attn\.norm_k": image + "attn.norm.key_norm",
        double + r"attn\.norm_added_q": text + "attn.norm.query_norm",
        double + r"attn\.norm_added_k": text + "attn.norm.key_norm",
        double + r"attn\.to_out\.0": image + "attn.proj",
        double + r"attn\.to_add_out": text + "attn.proj",
        double + r"ff\.net\.0\.proj": image + "mlp.0",
        double + r"ff\.net\.2": image + "mlp.2",
        double + r"ff_context\.net\.0\.proj": text + "mlp.0",
        double + r"ff_context\.net\.2": text + "mlp.2",
        single + r"norm\.linear": r"single_blocks.\1.modulation.lin",
        single + r"attn\.norm_q": r"single_blocks.\1.norm.query_norm",
        single + r"attn\.norm_k": r"single_blocks.\1.norm.key_norm",
        single + r"proj_out": r"single_blocks.\1.linear2",
        r"((double|single)_blocks\..*)": r"\1",
        **_FINAL,
    }
    return _rename(state, table, ("final_layer.adaLN",))
