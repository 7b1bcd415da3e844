"""A tiny CLIPSeg with random weights, in the folder that transformers writes."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import parts


def save_clipseg(folder: Path) -> Path:
    """Save a model whose probabilities depend on image and text; returns its folder."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPSegProcessor, ViTImageProcessor

    tokenizer = parts.clip_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = small | marks | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = CLIPSegConfig(
        text_config=text,
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
        reduce_dim=16,
        extract_layers=[0, 1, 2],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPSegForImageSegmentation(config)
    model.save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    CLIPSegProcessor(processor, tokenizer).save_pretrained(folder)
    return folder
