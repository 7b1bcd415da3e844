"""Parts that several tiny pipelines share: tokenizers built offline, small text encoders, VAEs."""

from __future__ import annotations

import tempfile
from typing import Any

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
TEMPLATE = (  # Qwen's words around a caption, one token each, because pipelines cut a number of tokens
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships "
    "of the objects and background: You are a prompt engineer.\nsystem\nuser\nassistant\n"
)
VOCABULARY = 620  # of a tiny language model; `bpe_tokenizer` has 600 tokens at most
SCRATCH = tempfile.TemporaryDirectory(prefix="lorakit-tiny-")
CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def clip_tokenizer(length: int = 77) -> Any:
    """Build a tokenizer of bytes only, each with and without the end-of-word mark."""
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def t5_tokenizer() -> Any:
    """Build a unigram model of single letters."""
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
    """Train a byte-level BPE on two sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator([WORDS, TEMPLATE] * 4, trainer)
    return tokenizer


def qwen_tokenizer(*special: str) -> Any:
    """Build Qwen's chat tokenizer; `special` tokens follow the three that it always has."""
    from transformers import Qwen2TokenizerFast

    tokenizer = Qwen2TokenizerFast(tokenizer_object=bpe_tokenizer([*CHAT_TOKENS, *special]))
    tokenizer.chat_template = CHAT
    return tokenizer


def text_config(**changes: Any) -> dict[str, Any]:
    """Return the settings of a language model of one layer."""
    settings = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": VOCABULARY,
    }
    return settings | changes


def clip_text(tokenizer: Any, *, projection: bool, **changes: Any) -> Any:
    """Build a CLIP text encoder of width 16."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPTextConfig(**settings | changes)
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5(width: int = 32) -> tuple[Any, Any]:
    """Build a T5 encoder of one layer and its tokenizer."""
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), tokenizer


def kl(levels: int = 3, **changes: Any) -> Any:
    """Build the usual VAE, with 2^(levels - 1) pixels per side of a latent."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**_convolutions(levels) | changes)


def kl_flux2(levels: int = 3) -> Any:
    """Build Flux.2's VAE with random batch statistics."""
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(**_convolutions(levels))
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _convolutions(levels: int) -> dict[str, Any]:
    return {
        "block_out_channels": (8,) * (levels - 1) + (16,),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
    }


def flow_scheduler(**settings: Any) -> Any:
    """Build the scheduler that most flow models are published with."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | settings)


def qwen25_vl(tokenizer: Any, **changes: Any) -> Any:
    """Build Qwen2.5-VL with its image encoder, which text to image does not use."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = text_config(rope_parameters=mrope([1, 1, 0]), bos_token_id=None, eos_token_id=None, **changes)
    del text["head_dim"]
    vision = {"intermediate_size": 16, "fullatt_block_indexes": [0], **_vision(text)}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_vision_tokens(tokenizer))
    )


def qwen3_vl(tokenizer: Any, *, head: bool = True, **changes: Any) -> Any:
    """Build Qwen3-VL; without `head`, the bare model that some pipelines use."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel

    text = text_config(rope_parameters=mrope([1, 1, 0]), **changes)
    vision = {"intermediate_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision | _vision(text), **_vision_tokens(tokenizer)
    )
    return Qwen3VLForConditionalGeneration(config) if head else Qwen3VLModel(config)


def mrope(section: list[int]) -> dict[str, Any]:
    """Return the settings of rotary positions on three axes; `section` divides half a head among them."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}


def _vision(text: dict[str, Any]) -> dict[str, Any]:
    return {"depth": 1, "hidden_size": 8, "num_heads": 2, "out_hidden_size": text["hidden_size"]}


def _vision_tokens(tokenizer: Any) -> dict[str, int]:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def with_text_length(pipe: Any, length: int) -> Any:
    """Set the text length as the folder's lorakit.json would: shorter texts are faster."""
    pipe.lorakit_settings = {"max_sequence_length": length}
    return pipe


def gemma2() -> tuple[Any, Any]:
    """Build Gemma 2 of two layers and its tokenizer."""
    from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe_tokenizer(["<pad>", "<eos>", "<bos>"]), pad_token="<pad>", eos_token="<eos>"
    )
    config = Gemma2Config(**text_config(num_hidden_layers=2), pad_token_id=0, eos_token_id=1, bos_token_id=2)
    return Gemma2Model(config), tokenizer
