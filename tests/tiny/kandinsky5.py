"""Kandinsky 5 text to image."""

from __future__ import annotations

from typing import Any

from tests.tiny import parts
from tests.tiny.row import FullNetwork, Row

_SIZES = ((64, 32), (32, 48))


def _kandinsky5() -> Any:
    from diffusers import Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    qwen, clip = parts.qwen_tokenizer(*parts.VISION_TOKENS), parts.clip_tokenizer()
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=8,
        in_text_dim2=16,
        time_dim=16,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
    )
    pipe = Kandinsky5T2IPipeline(
        transformer=transformer,
        vae=parts.kl(4, scaling_factor=0.3611),  # the pipeline assumes 8 pixels per latent
        text_encoder=parts.qwen25_vl(qwen),
        tokenizer=Qwen2VLProcessor(
            Qwen2VLImageProcessor(), qwen, Qwen2VLVideoProcessor(), chat_template=parts.CHAT
        ),
        text_encoder_2=parts.clip_text(clip, projection=False),
        tokenizer_2=clip,
        scheduler=parts.flow_scheduler(),
    )
    pipe.resolutions = list(_SIZES)  # the pipeline replaces other sizes by the nearest of these
    return pipe


_LITE: dict[str, Any] = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "model_dim": 2560,
    "ff_dim": 10240,
    "num_visual_blocks": 50,
    "axes_dims": (32, 48, 48),
}
ROWS = {
    "kandinsky5": Row(
        _kandinsky5,
        4 * 3,  # self-attention of the text, self- and cross-attention of the image
        sizes=_SIZES,
        initial_noise=lambda pipe, noise: noise.permute(0, 2, 3, 1)[:, None],
        latents_argument=lambda pipe, noise: noise.permute(0, 2, 3, 1)[:, None],
        unpack_prediction=lambda pipe, output, noise: output[:, 0].permute(0, 3, 1, 2),
        attention_layers=r"_attention\.",
        one_prompt_per_call=True,
        full=FullNetwork("Kandinsky5Transformer3DModel", 408, 33.4, _LITE),
    ),
}
