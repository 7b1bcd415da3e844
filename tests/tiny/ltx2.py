"""LTX-2, which generates videos with sound."""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import torch

from lorakit.models.families.family import noise_seed
from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row, sample_still


def _ltx2() -> Any:
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=parts.bpe_tokenizer(["<pad>", "<eos>", "<bos>"]),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )
    text = parts.text_config(num_hidden_layers=2) | {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    encoder = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    connector = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "num_layers": 1,
        "num_learnable_registers": None,
    }
    connectors = LTX2TextConnectors(
        caption_channels=8,
        text_proj_in_factor=3,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
        **{
            f"{kind}_connector_{key}": value
            for kind in ("video", "audio")
            for key, value in connector.items()
        },
    )
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        vae_scale_factors=(4, 8, 8),
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=8,
        rope_double_precision=False,
        rope_type="split",
    )
    pipe = LTX2Pipeline(
        scheduler=parts.flow_scheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=_vae(AutoencoderKLLTX2Video),
        audio_vae=AutoencoderKLLTX2Audio(
            base_channels=4,
            output_channels=2,
            ch_mult=(1,),
            num_res_blocks=1,
            attn_resolutions=None,
            in_channels=2,
            resolution=32,
            latent_channels=2,
            norm_type="pixel",
            causality_axis="height",
            mid_block_add_attention=False,
            sample_rate=16000,
            mel_hop_length=160,
            mel_bins=8,
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
        connectors=connectors,
        transformer=transformer,
        vocoder=LTX2Vocoder(
            in_channels=16,
            hidden_channels=32,
            out_channels=2,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16000,
        ),
    )
    return parts.with_text_length(pipe, 32)


def _vae(vae_class: Any) -> Any:
    vae = vae_class(
        latent_channels=4,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
        scaling_factor=0.8,
    )
    vae.latents_mean.normal_(std=0.3)
    vae.latents_std.uniform_(0.5, 2.0)
    return vae


_PLAIN: dict[str, Any] = {
    **{"stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0, "audio_guidance_scale": 1.0},
    **{"audio_stg_scale": 0.0, "audio_modality_scale": 1.0, "audio_guidance_rescale": 0.0},
}
_CALL = {"num_frames": 1, "max_sequence_length": 32, **_PLAIN}


class _Isolated(Exception):
    """Carries the network's output out of the pipeline's loop."""


def _predict(
    pipe: Any, caption: str, noise: torch.Tensor, t: torch.Tensor, width: int, height: int, **more: Any
) -> torch.Tensor:
    """Return the network's output when video and sound are isolated, as the pipeline does for guidance."""
    from tests.oracle import OneStep

    module, network = sys.modules[type(pipe).__module__], pipe.transformer

    def randn_tensor(shape: Any, **_: Any) -> torch.Tensor:
        return noise if tuple(shape) == tuple(noise.shape) else torch.ones(shape)

    def stop(_: Any, __: Any, arguments: dict[str, Any], output: Any) -> None:
        if arguments["isolate_modalities"]:
            raise _Isolated(output[0])

    hook = network.register_forward_hook(stop, with_kwargs=True)
    stub = OneStep(pipe.scheduler, t, stop=True)
    settings = _CALL | {"modality_scale": 3.0, "guidance_scale": 1.0, "num_inference_steps": 1} | more
    try:
        with (
            mock.patch.object(module, "randn_tensor", randn_tensor),
            mock.patch.object(pipe, "scheduler", stub),
        ):
            type(pipe).__call__.__wrapped__(pipe, prompt=caption, width=width, height=height, **settings)
    except _Isolated as isolated:
        return isolated.args[0].transpose(1, 2).reshape(noise.shape)
    finally:
        hook.remove()
    raise AssertionError("video and sound were never isolated")


def _sample(pipe: Any, **settings: Any) -> Any:
    """Sample with the sound that each video has by its noise."""
    seeds = [noise_seed(row.transpose(0, 1)) for row in settings["latents"]]
    return sample_still(
        pipe, **settings | {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    )


ROWS = {
    "ltx2": Row(
        _ltx2,
        2 * 2 * 4,  # of the video; the attention of the sound is not adapted
        sizes=((64, 32), (32, 64)),
        call_arguments=_CALL,
        latents_argument=lambda pipe, noise: noise.flatten(2).transpose(1, 2),
        sample=_sample,
        predict=_predict,
        attention_layers=r"transformer_blocks\.\d+\.attn[12]\.",
        full=FullNetwork("LTX2VideoTransformer3DModel", 384, 50.3),
    ),
}
