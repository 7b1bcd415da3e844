"""Transformers on plain latents: PixArt, HunyuanDiT, Sana, AuraFlow, HiDream, CogView4, ERNIE-Image."""

from __future__ import annotations

import functools
from typing import Any

from tokenizers.processors import TemplateProcessing

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, unshifted_timestep


def _pixart(pipeline: str = "PixArtSigmaPipeline", sample_size: int = 8, vae_levels: int = 3) -> Any:
    import diffusers
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    t5, tokenizer = parts.t5()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=sample_size,
        caption_channels=32,
        use_additional_conditions=sample_size == 128,
    )
    pipe = getattr(diffusers, pipeline)(
        vae=parts.kl(vae_levels, scaling_factor=0.13025),
        text_encoder=t5,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )
    return parts.with_text_length(pipe, 32)


def _hunyuan_dit(meta: bool) -> Any:
    from diffusers import DDIMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(parts.WORDS.lower().split())]
    bert = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    t5, t5_tokenizer = parts.t5()
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        cross_attention_dim=16,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        use_style_cond_and_image_meta_size=meta,
    )
    return HunyuanDiTPipeline(
        vae=parts.kl(4, scaling_factor=0.13025),
        text_encoder=BertModel(bert),
        tokenizer=BertTokenizer(vocab={word: i for i, word in enumerate(words)}),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
        scheduler=DDIMScheduler(prediction_type="v_prediction", beta_end=0.02, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sana() -> Any:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

    gemma, tokenizer = parts.gemma2()
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
        timestep_scale=0.7,
    )
    pipe = SanaPipeline(
        vae=vae,
        text_encoder=gemma,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=parts.flow_scheduler(),
    )
    return parts.with_text_length(pipe, 32)


def _aura_flow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = parts.t5_tokenizer()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    transformer.time_step_proj.linear_2.weight.data.mul_(30)  # opens the gates, or captions hardly matter
    pipe = AuraFlowPipeline(
        vae=parts.kl(scaling_factor=0.13025),
        text_encoder=UMT5EncoderModel(config),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=parts.flow_scheduler(shift=1.73),
    )
    return parts.with_text_length(pipe, 32)


def _hidream() -> Any:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    clip = parts.clip_tokenizer()
    t5, t5_tokenizer = parts.t5()
    llama_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.bpe_tokenizer(["<bos>", "<eos>"]), eos_token="<eos>", model_max_length=128
    )
    llama = LlamaForCausalLM(LlamaConfig(**parts.text_config(num_hidden_layers=2)))
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[32, 8],
        text_emb_dim=32,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
        force_inference_output=True,
    )
    pipe = HiDreamImagePipeline(
        vae=parts.kl(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=parts.clip_text(clip, projection=True, max_position_embeddings=128),
        tokenizer=clip,
        text_encoder_2=parts.clip_text(clip, projection=True, max_position_embeddings=128),
        tokenizer_2=clip,
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
        text_encoder_4=llama,
        tokenizer_4=llama_tokenizer,
        transformer=transformer,
        scheduler=parts.flow_scheduler(),
    )
    pipe.default_sample_size = 8  # the pipeline scales every size to this area
    return pipe


def _cogview4() -> Any:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel, PreTrainedTokenizerFast

    words = parts.bpe_tokenizer(["<pad>", "<sop>"])
    words.post_processor = TemplateProcessing(single="<sop> $A", special_tokens=[("<sop>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", padding_side="left")
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
    )
    return CogView4Pipeline(
        vae=parts.kl(4, scaling_factor=0.6, shift_factor=0.3),  # the shift is to be ignored
        text_encoder=GlmModel(GlmConfig(**parts.text_config(num_hidden_layers=2), pad_token_id=0)),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=parts.flow_scheduler(
            shift=1.0, use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75
        ),
    )


def _ernie() -> Any:
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel
    from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.bpe_tokenizer(["<pad>", "<bos>", "<eos>"]), pad_token="<pad>"
    )
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    return ErnieImagePipeline(
        vae=parts.kl_flux2(),
        text_encoder=MistralModel(MistralConfig(**parts.text_config(num_hidden_layers=2))),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=parts.flow_scheduler(),
    )


_NO_BINS = {"use_resolution_binning": False}
_UNSIZED = {"use_additional_conditions": False}
_ERNIE_FULL: dict[str, Any] = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_layers": 36,
    "ffn_hidden_size": 12288,
    "text_in_dim": 3072,
}
_HUNYUAN = {"hidden_size": 1408, "in_channels": 4, "patch_size": 2, "num_layers": 40}
_HIDREAM: dict[str, Any] = {"patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096]}
_HIDREAM |= {"llama_layers": [*range(48)]}
_COGVIEW4 = {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 128}
_CROSS = 2 * 2 * 4  # blocks x (self and cross attention) x projections
ROWS = {
    "pixart-sigma": Row(
        _pixart,
        _CROSS,
        call_arguments=_NO_BINS | {"clean_caption": False, "max_sequence_length": 32},
        full=FullNetwork("PixArtTransformer2DModel", 224, 8.3, {"caption_channels": 4096, **_UNSIZED}),
    ),
    # the network gets the image's size in pixels, 8 for each latent
    "pixart-alpha": Row(
        functools.partial(_pixart, "PixArtAlphaPipeline", 128, 4),
        _CROSS,
        call_arguments=_NO_BINS | {"clean_caption": False, "max_sequence_length": 32},
        full=FullNetwork("PixArtTransformer2DModel", 224, 8.3, {"caption_channels": 4096}),
    ),
    "pixart-alpha-512": Row(
        functools.partial(_pixart, "PixArtAlphaPipeline"),
        _CROSS,
        call_arguments=_NO_BINS | {"clean_caption": False, "max_sequence_length": 32},
    ),
    "hunyuan-dit": Row(
        functools.partial(_hunyuan_dit, True),
        _CROSS,
        call_arguments=_NO_BINS,
        full=FullNetwork("HunyuanDiT2DModel", 320, 13.9, _HUNYUAN | {"mlp_ratio": 4.3637}),
    ),
    "hunyuan-dit-1.2": Row(functools.partial(_hunyuan_dit, False), _CROSS, call_arguments=_NO_BINS),
    "sana": Row(
        _sana,
        _CROSS,
        sizes=((64, 32), (32, 64)),
        call_arguments=_NO_BINS | {"max_sequence_length": 32},
        full=FullNetwork("SanaTransformer2DModel", 160, 11.5),
    ),
    "auraflow": Row(
        _aura_flow,
        8 + 2 * 4,
        call_arguments={"max_sequence_length": 32},
        full=FullNetwork("AuraFlowTransformer2DModel", 160, 15.7),
    ),
    "hidream": Row(
        _hidream,
        8 + 4,
        sizes=((32, 32), (64, 16)),
        full=FullNetwork("HiDreamImageTransformer2DModel", 256, 21.0, _HIDREAM),
    ),
    "cogview4": Row(
        _cogview4,
        2 * 4,
        timestep=unshifted_timestep,
        one_prompt_per_call=True,
        full=FullNetwork("CogView4Transformer2DModel", 112, 14.7, _COGVIEW4),
    ),
    "ernie-image": Row(
        _ernie,
        2 * 4,
        call_arguments={"use_pe": False},
        attention_layers=r"self_attention\.",
        full=FullNetwork("ErnieImageTransformer2DModel", 144, 18.9, _ERNIE_FULL),
    ),
}
