"""Tiny random-weight pipelines, built offline in about a second each: the real classes, only small.

`tiny_pipeline(name)` is shared by a whole test session: do not change it, use `build(name)` for a copy of
your own. `tiny_folder(name)` is the same pipeline on disk. Zero-initialised layers are randomised, since
behind a zero gate every mistake is invisible.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = (
    "a photo of a red circle on a blue background at the left, a small green square, a large yellow star; "
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object attribution and actions without speculation. user assistant system"
)
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for part in m['content'] %}{{ part.get('text', '') }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SCRATCH = tempfile.TemporaryDirectory(prefix="lorakit-tiny-")


def clip_tokenizer(length: int = 77) -> Any:
    """Bytes only, each with and without the end-of-word mark."""
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def t5_tokenizer() -> Any:
    """A unigram model of a few words."""
    from transformers import T5Tokenizer

    letters = sorted(set(WORDS.replace(" ", "")))
    vocab = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in letters),
    ]
    return T5Tokenizer(vocab=vocab, extra_ids=4)


def bpe_tokenizer(special: list[str]) -> Tokenizer:
    """Byte-level BPE trained on a sentence or two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    return tokenizer


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every zero-initialised tensor small random values; evaluation mode, no gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.2, generator=generator)
    return module.eval().requires_grad_(False)


def _clip_text(tokenizer: Any, projection: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _vae(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    settings: dict[str, Any] = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return AutoencoderKL(**settings | changes)


def _sd15(prediction: str = "epsilon") -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    # zero-terminal SNR goes with v: the last step is pure noise, from which epsilon says nothing
    ending = (
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if prediction != "epsilon" else {}
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **ending,
    )
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip_text(tokenizer, projection=False),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _t5() -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), tokenizer


def _sd3(t5: bool = True, dual: tuple[int, ...] = ()) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer = clip_tokenizer()
    encoder, encoder_tokenizer = _t5() if t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
        dual_attention_layers=dual,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip_text(tokenizer, projection=True),
        tokenizer=tokenizer,
        text_encoder_2=_clip_text(tokenizer, projection=True),
        tokenizer_2=tokenizer,
        text_encoder_3=encoder,
        tokenizer_3=encoder_tokenizer,
    )


def _flux2_parts(guidance: bool, joint: int) -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=joint,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"vae": vae, "transformer": transformer, "scheduler": scheduler}


def _text_config() -> dict[str, Any]:
    return {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 31,  # the pipelines read layers 10, 20, 30 (dev) and 9, 18, 27 (klein)
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 420,
    }


def _flux2_klein() -> Any:
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2TokenizerFast(tokenizer_object=bpe_tokenizer(special))
    tokenizer.chat_template = CHAT
    encoder = Qwen3ForCausalLM(Qwen3Config(**_text_config(), tie_word_embeddings=True))
    return Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokenizer, **_flux2_parts(False, 24))


def _flux2_dev() -> Any:
    from diffusers import Flux2Pipeline
    from transformers import (
        Mistral3Config,
        Mistral3ForConditionalGeneration,
        PixtralImageProcessor,
        PixtralProcessor,
        PreTrainedTokenizerFast,
    )

    special = [
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "<|im_start|>",
        "<|im_end|>",
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe_tokenizer(special), pad_token="<pad>", eos_token="</s>", padding_side="left"
    )
    processor = PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=CHAT)
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Mistral3Config(
        text_config={"model_type": "mistral", **_text_config()},
        vision_config={"model_type": "pixtral", "head_dim": 4, "image_size": 32, "patch_size": 16, **vision},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
    )
    encoder = Mistral3ForConditionalGeneration(config)
    return Flux2Pipeline(text_encoder=encoder, tokenizer=processor, **_flux2_parts(True, 24))


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd15": _sd15,
    "sd15-v": functools.partial(_sd15, "v_prediction"),
    "sd3": _sd3,
    "sd3-no-t5": functools.partial(_sd3, t5=False),
    "sd35": functools.partial(_sd3, t5=False, dual=(0,)),
    "flux2-dev": _flux2_dev,
    "flux2-klein": _flux2_klein,
}


def build(name: str) -> Any:
    """A fresh pipeline; the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = BUILDERS[name]()
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            randomise(component)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def tiny_pipeline(name: str) -> Any:
    """The session's shared pipeline; read only."""
    return build(name)


@functools.cache
def tiny_folder(name: str) -> Path:
    """The pipeline saved as diffusers does; read only, removed when the process ends."""
    folder = Path(_SCRATCH.name) / name
    tiny_pipeline(name).save_pretrained(folder)
    return folder
