"""Adapter files of other trainers in small: real tensor names and widths, few blocks, rank 2.

The answers of ComfyUI are those of its own code, version 0.30 (August 2026), run on these files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

RANK = 2
Shape = tuple[int, ...]
Values = Callable[..., torch.Tensor]
Writer = Callable[[Shape, Values], dict[str, torch.Tensor]]


class Layout(NamedTuple):
    """One layout: the modules of a file by the stems of their keys, and what is right for it."""

    families: tuple[str, ...]
    """The families whose network has these modules; the file's own is the first."""
    origin: str
    """The trainer or release that writes such files."""
    kind: str
    """The tensors of a module: a key of `WRITERS`."""
    modules: Mapping[str, Shape]
    """Shapes of weights by stem; `{0,18}` stands for several blocks."""
    comfyui: str = "yes"
    """The answer of ComfyUI's own code: yes, partly or no."""
    extra: Mapping[str, Shape] = {}
    """Further tensors, by key."""
    refused: str = ""
    """Words of the error with which the file is refused, if it is."""


def _expand(stem: str) -> list[str]:
    parts = [
        part.split(",") if index % 2 else [part] for index, part in enumerate(re.split(r"\{(.*?)\}", stem))
    ]
    return ["".join(words) for words in itertools.product(*parts)]


def build(layout: Layout, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the tensors of a layout, with random values."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    tensors = {}
    for template, shape in layout.modules.items():
        for stem in _expand(template):
            for end, tensor in WRITERS[layout.kind](shape, values).items():
                tensors[f"{stem}{end}"] = tensor
    for template, shape in layout.extra.items():
        for key in _expand(template):
            tensors[key] = values(*shape)
    return tensors


def _pair(down: str, up: str, alpha: float | None = None) -> Writer:
    def write(shape: Shape, values: Values) -> dict[str, torch.Tensor]:
        out, inputs, *kernel = shape
        tensors = {down: values(RANK, inputs, *kernel), up: values(out, RANK, *[1] * len(kernel))}
        return tensors | ({".alpha": torch.tensor(alpha)} if alpha is not None else {})

    return write


def _dora(down: str, up: str, magnitude: str, alpha: float | None = None, *, dims: int = 2) -> Writer:
    def write(shape: Shape, values: Values) -> dict[str, torch.Tensor]:
        size = (shape[0], 1) if dims == 2 else (shape[0],)
        return _pair(down, up, alpha)(shape, values) | {magnitude: values(*size).abs() + 1}

    return write


def _loha(shape: Shape, values: Values) -> dict[str, torch.Tensor]:
    out, inputs = shape[:2]
    sides = {
        ".hada_w1_a": (out, RANK),
        ".hada_w1_b": (RANK, inputs),
        ".hada_w2_a": (out, RANK),
        ".hada_w2_b": (RANK, inputs),
    }
    return {end: values(*size) for end, size in sides.items()} | {".alpha": torch.tensor(1.0)}


def _lokr(shape: Shape, values: Values) -> dict[str, torch.Tensor]:
    out, inputs = shape[0] // 4, shape[1] // 4
    sides = {".lokr_w1": (4, 4), ".lokr_w2_a": (out, RANK), ".lokr_w2_b": (RANK, inputs)}
    return {end: values(*size) for end, size in sides.items()} | {".alpha": torch.tensor(1.0)}


WRITERS = {
    "kohya": _pair(".lora_down.weight", ".lora_up.weight", 1.0),
    "no alpha": _pair(".lora_down.weight", ".lora_up.weight"),
    "peft": _pair(".lora_A.weight", ".lora_B.weight"),
    "peft with alpha": _pair(".lora_A.weight", ".lora_B.weight", 1.0),
    "peft default": _pair(".lora_A.default.weight", ".lora_B.default.weight"),
    "dots": _pair(".lora.down.weight", ".lora.up.weight"),
    "processor": _pair("_lora.down.weight", "_lora.up.weight"),
    "xlabs": _pair(".down.weight", ".up.weight"),
    "dora": _dora(".lora_down.weight", ".lora_up.weight", ".dora_scale", 1.0),
    "peft dora": _dora(".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", dims=1),
    "loha": _loha,
    "lokr": _lokr,
    "ia3": lambda shape, values: {".weight": values(shape[0]), ".on_input": torch.tensor(False)},
    "glora": lambda shape, values: {
        ".a1.weight": values(RANK, shape[1]), ".a2.weight": values(shape[1], RANK),
        ".b1.weight": values(RANK, shape[1]), ".b2.weight": values(shape[0], RANK),
        ".alpha": torch.tensor(1.0),
    },
}  # fmt: skip

_FLUX_NATIVE = {
    "double_blocks.{0,18}.img_attn.qkv": (9216, 3072),
    "double_blocks.{0,18}.txt_attn.proj": (3072, 3072),
    "double_blocks.{0,18}.img_mlp.0": (12288, 3072),
    "single_blocks.{0,37}.linear1": (21504, 3072),
    "single_blocks.{0,37}.linear2": (3072, 15360),
}
_MODULATION = {
    "double_blocks.{0,18}.img_mod.lin": (18432, 3072),
    "single_blocks.{0,37}.modulation.lin": (9216, 3072),
}
_FLUX_DIFFUSERS = {
    "transformer_blocks.{0,18}.attn.{to_q,to_k,to_v,to_out.0,add_q_proj}": (3072, 3072),
    "transformer_blocks.{0,18}.ff.net.0.proj": (12288, 3072),
    "single_transformer_blocks.{0,37}.attn.{to_q,to_k,to_v}": (3072, 3072),
    "single_transformer_blocks.{0,37}.proj_out": (3072, 15360),
}
_NORM_LINEAR = {
    "transformer_blocks.{0,18}.norm1.linear": (18432, 3072),
    "single_transformer_blocks.{0,37}.norm.linear": (9216, 3072),
}
_FLUXES = ("flux1", "flux1-kontext", "flux1-fill", "flux1-control", "chroma", "longcat-image", "bria", "fibo")
_CLIP_L = {"text_model_encoder_layers_{0,11}_self_attn_{q_proj,out_proj}": (768, 768)}
_SDXL_DIFFUSERS = {
    "down_blocks.2.attentions.{0,1}.transformer_blocks.{0,9}.attn1.{to_q,to_v,to_out.0}": (1280, 1280),
    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k": (1280, 2048),
    "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2": (1280, 5120),
}
_SDXL_LDM = {
    "input_blocks_8_1_transformer_blocks_{0,9}_attn1_{to_q,to_v,to_out_0}": (1280, 1280),
    "middle_block_1_transformer_blocks_9_attn2_to_k": (1280, 2048),
    "output_blocks_2_1_transformer_blocks_9_ff_net_2": (1280, 5120),
}
_WAN_NATIVE = {
    "blocks.{0,39}.self_attn.{q,k,v,o}": (5120, 5120),
    "blocks.{0,39}.cross_attn.{q,k,v,o}": (5120, 5120),
    "blocks.{0,39}.ffn.0": (13824, 5120),
    "blocks.{0,39}.ffn.2": (5120, 13824),
}
_WAN_IMAGE = {"blocks.{0,39}.cross_attn.{k_img,v_img}": (5120, 5120)}
_HUNYUAN_NATIVE = {
    "double_blocks.{0,19}.img_attn_qkv": (9216, 3072),
    "double_blocks.{0,19}.txt_attn_proj": (3072, 3072),
    "double_blocks.{0,19}.img_mlp.fc1": (12288, 3072),
    "single_blocks.{0,39}.linear1": (21504, 3072),
    "single_blocks.{0,39}.linear2": (3072, 15360),
}
_QWEN = {
    "transformer_blocks.{0,59}.attn.{to_q,to_v,to_out.0,add_k_proj,to_add_out}": (3072, 3072),
    "transformer_blocks.{0,59}.img_mlp.net.0.proj": (12288, 3072),
    "transformer_blocks.{0,59}.txt_mlp.net.2": (3072, 12288),
}
_QWENS = ("qwen-image", "qwen-image-edit", "qwen-image-edit-plus")
_Z = {
    "layers.{0,29}.attention.{to_q,to_k,to_v,to_out.0}": (3840, 3840),
    "layers.{0,29}.feed_forward.w1": (10240, 3840),
    "context_refiner.1.attention.to_q": (3840, 3840),
}
_Z_FUSED = {
    "layers.{0,29}.attention.qkv": (11520, 3840), "layers.{0,29}.attention.out": (3840, 3840),
    "layers.{0,29}.feed_forward.w2": (3840, 10240),
}  # fmt: skip
_SD3_NATIVE = {
    "joint_blocks.{0,22}.x_block.attn.qkv": (4608, 1536),
    "joint_blocks.{0,22}.context_block.attn.qkv": (4608, 1536),
    "joint_blocks.{0,22}.x_block.mlp.fc1": (6144, 1536),
    "joint_blocks.{0,12}.x_block.attn2.proj": (1536, 1536),
}
_SD3_DIFFUSERS = {
    "transformer_blocks.{0,37}.attn.{to_q,to_k,to_v,to_out.0,add_q_proj}": (2432, 2432),
    "transformer_blocks.{0,37}.ff.net.2": (2432, 9728),
}
_LTX = {
    "transformer_blocks.{0,27}.{attn1,attn2}.{to_q,to_k,to_out.0}": (2048, 2048),
    "transformer_blocks.{0,27}.ff.net.0.proj": (8192, 2048),
}
_LTX2 = {
    "transformer_blocks.{0,47}.attn1.{to_q,to_out.0}": (4096, 4096),
    "transformer_blocks.{0,47}.audio_attn1.to_q": (2048, 2048),
    "transformer_blocks.{0,47}.audio_to_video_attn.to_q": (2048, 4096),
}


def _with(prefix: str, *groups: Mapping[str, Shape], separator: str = ".") -> dict[str, Shape]:
    """Return the modules of all groups with a prefix, their dots replaced by `separator`."""
    return {prefix + _separated(stem, separator): shape for group in groups for stem, shape in group.items()}


def _separated(stem: str, separator: str) -> str:
    return stem.replace(".", separator)


LAYOUTS = {
    # Flux.1
    "flux1 sd-scripts": Layout(
        _FLUXES,
        "sd-scripts networks.lora_flux",
        "kohya",
        _with("lora_unet_", _FLUX_NATIVE, _MODULATION, separator="_"),
    ),
    "flux1 sd-scripts with clip": Layout(
        ("flux1",),
        "sd-scripts, train_t5xxl off",
        "kohya",
        _with("lora_unet_", _FLUX_NATIVE, separator="_") | _with("lora_te1_", _CLIP_L),
    ),
    "flux1 ai-toolkit": Layout(
        _FLUXES, "ai-toolkit", "peft", _with("transformer.", _FLUX_DIFFUSERS, _NORM_LINEAR)
    ),
    "flux1 ai-toolkit lokr": Layout(
        _FLUXES, "ai-toolkit, network type lokr", "lokr", _with("lycoris_", _FLUX_DIFFUSERS, separator="_")
    ),
    "flux1 fal": Layout(
        _FLUXES, "fal flux-lora-fast-training", "peft", _with("base_model.model.", _FLUX_DIFFUSERS), "no"
    ),
    "flux1 OneTrainer": Layout(
        _FLUXES,
        "OneTrainer, before OMI names",
        "kohya",
        _with("lora_transformer_", _FLUX_DIFFUSERS, separator="_"),
    ),
    "flux1 XLabs": Layout(
        _FLUXES,
        "XLabs x-flux",
        "xlabs",
        {
            "double_blocks.{0,18}.processor.qkv_lora1": (9216, 3072),
            "double_blocks.{0,18}.processor.proj_lora2": (3072, 3072),
        },
        "no",
    ),
    "flux1 BFL control": Layout(
        ("flux1-control",),
        "FLUX.1-Canny-dev-lora",
        "peft",
        _with("", _FLUX_NATIVE, {"img_in": (3072, 128)}),
        extra={
            "double_blocks.{0,18}.img_attn.qkv.lora_B.bias": (9216,),
            "single_blocks.0.norm.key_norm.scale": (128,),
            "single_blocks.0.norm.query_norm.scale": (128,),
        },
    ),
    "flux1 native peft": Layout(
        _FLUXES, "diffusion-pipe", "peft", _with("diffusion_model.", _FLUX_NATIVE, _MODULATION)
    ),
    "flux1 SimpleTuner doubled": Layout(
        _FLUXES, "SimpleTuner#779", "peft", _with("transformer.base_model.model.", _FLUX_DIFFUSERS), "no"
    ),
    "flux1 dora": Layout(
        _FLUXES,
        "sd-scripts, LyCORIS dora_wd",
        "dora",
        _with(
            "lora_unet_",
            {
                "double_blocks.{0,18}.img_attn.proj": (3072, 3072),
                "single_blocks.37.linear2": (3072, 15360),
                "double_blocks.0.img_mod.lin": (18432, 3072),
            },
            separator="_",
        ),
    ),
    "flux1 diffusers dora": Layout(
        _FLUXES, "diffusers, use_dora", "peft dora", _with("transformer.", _FLUX_DIFFUSERS), "partly"
    ),
    "flux1 loha": Layout(
        _FLUXES, "LyCORIS, algo=loha", "loha", _with("lora_unet_", _FLUX_NATIVE, _MODULATION, separator="_")
    ),
    # Flux.2, Chroma
    "flux2 ai-toolkit": Layout(
        ("flux2",),
        "ai-toolkit, klein 4B",
        "peft",
        _with(
            "diffusion_model.",
            {
                "double_blocks.{0,4}.img_attn.qkv": (9216, 3072),
                "double_blocks.{0,4}.img_mlp.0": (18432, 3072),
                "single_blocks.{0,19}.linear1": (27648, 3072),
            },
        ),
    ),
    "flux2 lokr": Layout(
        ("flux2",),
        "LyCORIS, algo=lokr",
        "lokr",
        _with(
            "lora_unet_",
            {
                "double_blocks.{0,7}.img_attn.qkv": (18432, 6144),
                "single_blocks.{0,47}.linear1": (55296, 6144),
            },
            separator="_",
        ),
    ),
    "flux2 diffusers": Layout(
        ("flux2",),
        "diffusers train_dreambooth_lora_flux2",
        "peft",
        _with(
            "transformer.",
            {
                "transformer_blocks.{0,7}.attn.{to_q,to_out.0,add_q_proj}": (6144, 6144),
                "single_transformer_blocks.{0,47}.attn.to_qkv_mlp_proj": (55296, 6144),
            },
        ),
    ),
    "chroma sd-scripts": Layout(
        ("chroma",),
        "sd-scripts, model_type chroma",
        "kohya",
        _with(
            "lora_unet_",
            _FLUX_NATIVE,
            {"distilled_guidance_layer.layers.0.in_layer": (5120, 5120)},
            separator="_",
        ),
    ),
    # Stable Diffusion
    "sdxl sd-scripts": Layout(
        ("sdxl",),
        "sd-scripts sdxl_train_network",
        "kohya",
        _with("lora_unet_", _SDXL_LDM)
        | _with("lora_te1_", _CLIP_L)
        | _with("lora_te2_", {"text_model_encoder_layers_31_mlp_fc1": (5120, 1280)}),
    ),
    "sdxl LoCon": Layout(
        ("sdxl",),
        "LyCORIS, algo=locon",
        "kohya",
        _with(
            "lora_unet_",
            _SDXL_LDM,
            {
                "input_blocks_8_0_in_layers_2": (1280, 1280, 3, 3),
                "input_blocks_4_0_skip_connection": (640, 320, 1, 1),
            },
        ),
    ),
    "sdxl diffusers": Layout(
        ("sdxl",), "diffusers, before peft", "dots", _with("unet.", _SDXL_DIFFUSERS), "partly"
    ),
    "sdxl peft": Layout(
        ("sdxl",), "diffusers, peft names", "peft", _with("unet.", _SDXL_DIFFUSERS), "partly"
    ),
    "sdxl processor": Layout(
        ("sdxl",),
        "diffusers 0.17",
        "processor",
        _with(
            "unet.",
            {
                "down_blocks.2.attentions.1.transformer_blocks.9.attn2.processor.to_k": (1280, 2048),
                "down_blocks.2.attentions.1.transformer_blocks.{0,9}.attn1.processor.{to_q,to_v,to_out}": (
                    1280,
                    1280,
                ),
            },
        ),
    ),
    "sdxl lcm": Layout(
        ("sdxl",),
        "latent-consistency/lcm-lora-sdxl",
        "kohya",
        _with(
            "lora_unet_",
            _SDXL_DIFFUSERS,
            {
                "down_blocks.0.resnets.0.conv1": (320, 320, 3, 3),
                "down_blocks.0.downsamplers.0.conv": (320, 320, 3, 3),
            },
            separator="_",
        ),
    ),
    "sdxl peft folder": Layout(
        ("sdxl",), "peft save_pretrained", "peft", _with("base_model.model.", _SDXL_DIFFUSERS), "no"
    ),
    "sd15 sd-scripts": Layout(
        ("sd15", "sd15-inpaint"),
        "sd-scripts train_network",
        "kohya",
        _with(
            "lora_unet_",
            {
                "input_blocks_{1,2}_1_transformer_blocks_0_attn1_to_q": (320, 320),
                "input_blocks_7_1_transformer_blocks_0_attn2_to_k": (1280, 768),
            },
        )
        | _with("lora_te_", _CLIP_L),
    ),
    "sd15 ia3": Layout(
        ("sd15",),
        "LyCORIS, algo=ia3",
        "ia3",
        _with("lora_unet_", {"input_blocks_1_1_transformer_blocks_0_attn1_to_k": (320, 320)}),
        "no",
        refused="IA",
    ),
    "sd15 glora": Layout(
        ("sd15", "sd15-inpaint"),
        "LyCORIS, algo=glora",
        "glora",
        _with("lora_unet_", {"input_blocks_1_1_transformer_blocks_0_attn1_to_k": (320, 320)}),
        refused="GLoRA",
    ),
    "sd3 sd-scripts": Layout(
        ("sd3",), "sd-scripts networks.lora_sd3", "kohya", _with("lora_unet_", _SD3_NATIVE, separator="_")
    ),
    "sd3 large diffusers": Layout(
        ("sd3",), "diffusers train_dreambooth_lora_sd3", "peft", _with("transformer.", _SD3_DIFFUSERS)
    ),
    "sd3 lycoris": Layout(
        ("sd3",), "SimpleTuner, lycoris lokr", "lokr", _with("lycoris_", _SD3_DIFFUSERS, separator="_")
    ),
    # Wan, HunyuanVideo, LTX, CogVideoX
    "wan musubi": Layout(("wan",), "musubi-tuner", "kohya", _with("lora_unet_", _WAN_NATIVE, separator="_")),
    "wan diffusion-pipe": Layout(("wan",), "diffusion-pipe", "peft", _with("diffusion_model.", _WAN_NATIVE)),
    "wan lightx2v": Layout(
        ("wan-i2v", "wan"),
        "lightx2v, distilled I2V",
        "no alpha",
        _with("diffusion_model.", _WAN_NATIVE, _WAN_IMAGE),
        extra={
            "diffusion_model.blocks.{0,39}.self_attn.q.diff_b": (5120,),
            "diffusion_model.blocks.{0,39}.norm3.diff": (5120,),
            "diffusion_model.blocks.{0,39}.norm3.diff_b": (5120,),
            "diffusion_model.head.head.diff": (64, 5120),
            "diffusion_model.head.head.diff_b": (64,),
        },
    ),
    "wan diffusers": Layout(
        ("wan",),
        "finetrainers",
        "peft",
        _with(
            "transformer.",
            {
                "blocks.{0,39}.attn1.{to_q,to_out.0}": (5120, 5120),
                "blocks.{0,39}.ffn.net.0.proj": (13824, 5120),
            },
        ),
        "no",
    ),
    "wan Fun": Layout(("wan",), "VideoX-Fun", "kohya", _with("lora_unet__", _WAN_NATIVE, separator="_")),
    "hunyuan-video musubi": Layout(
        ("hunyuan-video",),
        "musubi-tuner",
        "kohya",
        _with("lora_unet_", _HUNYUAN_NATIVE, separator="_"),
        "partly",
    ),
    "hunyuan-video diffusion-pipe": Layout(
        ("hunyuan-video",), "diffusion-pipe", "peft", _with("transformer.", _HUNYUAN_NATIVE)
    ),
    "hunyuan-video FastVideo": Layout(
        ("hunyuan-video",),
        "FastHunyuan",
        "peft",
        _with(
            "transformer.",
            {
                "transformer_blocks.{0,19}.attn.{to_q,to_out.0}": (3072, 3072),
                "single_transformer_blocks.{0,39}.attn.to_v": (3072, 3072),
            },
        ),
        "no",
    ),
    "ltx": Layout(("ltx-video",), "LTX-Video-Trainer, ComfyUI", "peft", _with("diffusion_model.", _LTX)),
    "ltx-2": Layout(("ltx-2",), "LTX-2 trainer", "peft", _with("diffusion_model.", _LTX2)),
    "cogvideox": Layout(
        ("cogvideox",),
        "diffusers train_cogvideox_lora",
        "peft",
        _with("transformer.", {"transformer_blocks.{0,29}.attn1.{to_q,to_k,to_v,to_out.0}": (1920, 1920)}),
        "no",
    ),
    # Qwen-Image, Z-Image, others
    "qwen-image Lightning": Layout(_QWENS, "lightx2v Qwen-Image-Lightning", "kohya", _with("", _QWEN)),
    "qwen-image musubi": Layout(_QWENS, "musubi-tuner", "kohya", _with("lora_unet_", _QWEN, separator="_")),
    "qwen-image ai-toolkit": Layout(_QWENS, "ai-toolkit", "peft", _with("diffusion_model.", _QWEN)),
    "qwen-image default": Layout(_QWENS, "DiffSynth-Studio", "peft default", _with("", _QWEN)),
    "z-image ai-toolkit": Layout(("z-image",), "ai-toolkit", "peft", _with("diffusion_model.", _Z)),
    "z-image musubi": Layout(
        ("z-image",), "musubi-tuner", "kohya", _with("lora_unet_", _Z, separator="_"), "partly"
    ),
    "z-image native": Layout(
        ("z-image",), "ComfyUI's own names", "kohya", _with("lora_unet_", _Z_FUSED, separator="_")
    ),
    "lumina2 sd-scripts": Layout(
        ("lumina2",),
        "sd-scripts networks.lora_lumina",
        "kohya",
        _with(
            "lora_unet_",
            {"layers.{0,25}.attention.qkv": (3840, 2304), "layers.{0,25}.attention.out": (2304, 2304)},
            separator="_",
        ),
    ),
    "hidream ai-toolkit": Layout(
        ("hidream",),
        "ai-toolkit",
        "peft",
        _with(
            "diffusion_model.",
            {
                "double_stream_blocks.{0,15}.block.attn1.{to_q,to_out_t}": (2560, 2560),
                "single_stream_blocks.31.block.attn1.to_v": (2560, 2560),
            },
        ),
    ),
    "krea2 diffusers": Layout(
        ("krea2",),
        "ai-toolkit",
        "peft",
        _with(
            "diffusion_model.",
            {
                "transformer_blocks.{0,27}.attn.{to_q,to_gate}": (6144, 6144),
                "transformer_blocks.{0,27}.attn.to_k": (1536, 6144),
            },
        ),
    ),
    "auraflow diffusers": Layout(
        ("auraflow",),
        "SimpleTuner",
        "peft",
        _with(
            "transformer.",
            {
                "joint_transformer_blocks.{0,3}.attn.{to_q,add_q_proj}": (3072, 3072),
                "single_transformer_blocks.{0,31}.attn.to_out.0": (3072, 3072),
            },
        ),
    ),
    "pixart": Layout(
        ("pixart-sigma", "pixart-alpha", "sana"),
        "peft, OneTrainer",
        "peft",
        _with("transformer.", {"transformer_blocks.{0,27}.{attn1,attn2}.{to_q,to_out.0}": (1152, 1152)}),
    ),
}
