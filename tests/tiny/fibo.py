"""Bria FIBO and FIBO 2."""

from __future__ import annotations

from typing import Any

import torch

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, Tensor


def _fibo() -> Any:
    from diffusers import AutoencoderKLWan, BriaFiboPipeline, BriaFiboTransformer2DModel
    from transformers import PreTrainedTokenizerFast, SmolLM3Config, SmolLM3ForCausalLM

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.bpe_tokenizer(["<pad>", "<eos>"]), pad_token="<pad>", eos_token="<eos>"
    )
    # the pipeline has the id of its empty caption's token in its code
    config = SmolLM3Config(**parts.text_config(num_hidden_layers=2, vocab_size=128_001), pad_token_id=0)
    del config.head_dim
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.3, -0.2, 0.1, 0.0],
        latents_std=[1.5, 0.7, 1.2, 0.9],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
    )
    transformer = BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=3,  # more blocks than the text encoder has layers
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[2, 4, 2],
        text_encoder_dim=8,
    )
    return BriaFiboPipeline(
        vae=vae,
        text_encoder=SmolLM3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
    )


def _fibo2() -> Any:
    from diffusers import BriaFibo2Pipeline, BriaFibo2Transformer2DModel
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=parts.CHAT
    )
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=24,
        injection_layer_ids=(0, 1, 2, 3, 4),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=4,
        gist_max_text_len=64,
        axes_dims=(4, 6, 6),
        axes_lens=(128, 64, 64),
    )
    return BriaFibo2Pipeline(
        vae=parts.kl_flux2(),
        text_encoder=parts.qwen3_vl(tokenizer, num_hidden_layers=35),  # layers up to 35 are read
        processor=processor,
        transformer=transformer,
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True),
    )


def _tokens(pipe: Any, noise: Tensor) -> Tensor:
    return noise.flatten(2).transpose(1, 2)


def _unpack(pipe: Any, output: Tensor, noise: Tensor) -> Tensor:
    return output.transpose(1, 2).reshape(noise.shape)


def _shuffled(pipe: Any, noise: Tensor) -> Tensor:
    return pipe._unpatchify_latents(noise)


def _patchified(pipe: Any, output: Tensor, noise: Tensor) -> Tensor:
    assert output.dtype == torch.float32
    return pipe._patchify_latents(output)


ROWS = {
    "fibo": Row(
        _fibo,
        8 + 3 * 3,
        sizes=((128, 64), (64, 96)),
        latents_argument=_tokens,
        unpack_prediction=_unpack,
        full=FullNetwork("BriaFiboTransformer2DModel", 266, 26.1, {"in_channels": 48}),
    ),
    "fibo2": Row(
        _fibo2,
        (1 + 2 + 6 + 5) * 4,  # refiner, two of the perceiver, layers, text injection into five of them
        initial_noise=_shuffled,
        latents_argument=_shuffled,
        unpack_prediction=_patchified,
        attention_layers=r"attention\.",
        full=FullNetwork("BriaFibo2Transformer2DModel", 220, 26.1),
    ),
}
