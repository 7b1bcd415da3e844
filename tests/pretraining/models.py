"""The two embedded pipelines, in the classes and folder formats of Stable Diffusion 1.5 and 3.

Both use the CLIP's text tower as text encoder, like the original models, and share the autoencoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lorakit.core import storage
from tests.pretraining import clip as clip_model
from tests.pretraining.tokenizer import CONTEXT_LENGTH, save_tokenizer

LATENT_SIDE = 16  # side of a latent
T5_SEQUENCE_LENGTH = 1  # rows of zeros for the missing T5 (the pipeline's default is 256)
PIPELINE_CLASSES = {"tiny-unet": "StableDiffusionPipeline", "tiny-dit": "StableDiffusion3Pipeline"}


def build_unet() -> Any:
    """Return an untrained U-Net like that of Stable Diffusion 1.5.

    The 4 x 4 level is for positions: a U-Net has no positional encoding, and zero padding shows the position
    of a cell only near the border. Attention at 16 x 16 costs a third of the speed, so only the up blocks
    have it; without it adapters, which train attention, cannot change details smaller than an 8 x 8 cell.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=clip_model.WIDTH,
        attention_head_dim=(2, 3, 2),  # the number of heads, as in Stable Diffusion 1.5 (diffusers' old name)
        norm_num_groups=16,
    )


def build_dit() -> Any:
    """Return an untrained transformer like that of Stable Diffusion 3, with normalized queries and keys."""
    from diffusers import SD3Transformer2DModel

    heads, head = 4, 32
    return SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=head,
        num_attention_heads=heads,
        joint_attention_dim=2 * clip_model.WIDTH,  # two text encoders side by side
        caption_projection_dim=heads * head,
        pooled_projection_dim=2 * clip_model.WIDTH,
        pos_embed_max_size=LATENT_SIDE,
        qk_norm="rms_norm",
    )


def build_text_encoder(clip: Any, tokenizer: Any, *, projected: bool) -> Any:
    """Return the CLIP's text tower as CLIPTextModel, or if `projected` as CLIPTextModelWithProjection.

    The projection is zero: the pooled vector controls the transformer's modulation, and a word that is not in
    the pre-training data would make it explode; the words still arrive through attention.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first = clip.transformer.resblocks[0]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=clip_model.WIDTH,
        intermediate_size=first.mlp.c_fc.out_features,
        projection_dim=clip_model.WIDTH,
        num_hidden_layers=len(clip.transformer.resblocks),
        num_attention_heads=first.attn.num_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    target = {name.removeprefix("text_model."): p for name, p in encoder.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        for name, value in _tower_weights(clip).items():
            target.pop(name).copy_(value)
        if projected:
            target.pop("text_projection.weight").zero_()
    unset = [name for name in target if "position_ids" not in name]
    assert not unset, f"the text encoder has weights that the CLIP does not have: {unset}"
    return encoder.eval()


def _tower_weights(clip: Any) -> dict[str, torch.Tensor]:
    """Return open_clip's text tower with transformers' names; open_clip has one matrix for q, k and v."""
    weights = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    for number, block in enumerate(clip.transformer.resblocks):
        parts = {
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "self_attn.out_proj": block.attn.out_proj,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
        }
        for name, part in parts.items():
            weights[f"encoder.layers.{number}.{name}.weight"] = part.weight
            weights[f"encoder.layers.{number}.{name}.bias"] = part.bias
        for kind, weight, bias in zip(
            "qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True
        ):
            weights[f"encoder.layers.{number}.self_attn.{kind}_proj.weight"] = weight
            weights[f"encoder.layers.{number}.self_attn.{kind}_proj.bias"] = bias
    return weights


def build_pipeline(kind: str, denoiser: Any, vae: Any, clip: Any, tokenizer: Any) -> Any:
    """Return a pipeline of one of `PIPELINE_CLASSES` with these parts."""
    from diffusers import (
        DDIMScheduler,
        FlowMatchEulerDiscreteScheduler,
        StableDiffusion3Pipeline,
        StableDiffusionPipeline,
    )

    if kind == "tiny-dit":
        encoder = build_text_encoder(clip, tokenizer, projected=True)
        return StableDiffusion3Pipeline(
            transformer=denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=encoder,
            tokenizer=tokenizer,
            text_encoder_2=encoder,
            tokenizer_2=tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused with trailing spacing; diffusers warns about any other value
    )
    return StableDiffusionPipeline(
        unet=denoiser,
        scheduler=scheduler,
        vae=vae,
        text_encoder=build_text_encoder(clip, tokenizer, projected=False),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pipeline(pipe: Any, folder: Path) -> None:
    """Write the pipeline's folder in 16 bit in the layout of `save_pretrained`.

    `lorakit.json` holds the arguments that every call of `encode_prompt` and of the pipeline needs.
    """
    for name, part in pipe.components.items():
        if part is None:
            continue
        if name.startswith("tokenizer"):
            save_tokenizer(part, folder / name)
        elif name == "scheduler":
            storage.write_text(folder / name / "scheduler_config.json", part.to_json_string())
        else:
            _save_model(part, folder / name)
    index = json.loads(pipe.to_json_string())
    storage.write_json(folder / "model_index.json", _without_paths(index))
    if "text_encoder_3" in pipe.components:
        storage.write_json(folder / "lorakit.json", {"max_sequence_length": T5_SEQUENCE_LENGTH})


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the folder that its model was loaded from."""
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def _save_model(model: Any, folder: Path) -> None:
    tensors = {
        name: tensor.half() for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    if hasattr(model, "register_to_config"):  # diffusers
        storage.write_json(folder / "config.json", _without_paths(json.loads(model.to_json_string())))
        storage.write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
    else:
        config = {**model.config.to_dict(), "architectures": [type(model).__name__], "dtype": "float16"}
        storage.write_json(folder / "config.json", _without_paths(config))
        storage.write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})


def load_pipeline(folder: Path) -> Any:
    """Load an embedded pipeline in float32 on the CPU, without progress bars."""
    import diffusers

    name = storage.read_json(folder / "model_index.json")["_class_name"]
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == PIPELINE_CLASSES["tiny-dit"] else {}
    pipe = getattr(diffusers, name).from_pretrained(folder, dtype=torch.float32, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe
