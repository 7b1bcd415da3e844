"""The CLIP of the shape world, whose text tower is the text encoder of the base models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lorakit.core import storage
from lorakit.quickstart import shape_world
from tests.pretraining.loop import PretrainJob, run_training_loop
from tests.pretraining.muon import build_optimizers
from tests.pretraining.tokenizer import CONTEXT_LENGTH, build_tokenizer, save_tokenizer

WIDTH = 128
MEAN = STD = 0.5  # of every channel, recorded in the configuration


def clip_config(vocabulary: int) -> dict[str, Any]:
    """Return `open_clip_config.json`; `hf_tokenizer_name` makes open_clip read the folder's tokenizer."""
    tower = {"width": WIDTH, "mlp_ratio": 4.0}
    vision = {**tower, "image_size": shape_world.IMAGE_SIZE, "patch_size": 8, "layers": 4, "head_width": 32}
    text = {
        **tower,
        "layers": 3,
        "heads": 4,
        "context_length": CONTEXT_LENGTH,
        "vocab_size": vocabulary,
        "hf_tokenizer_name": "tokenizer.json",
    }
    return {
        "model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {
            "mean": [MEAN] * 3,
            "std": [STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def build_clip(vocabulary: int) -> Any:
    """Return an untrained CLIP."""
    import open_clip

    return open_clip.CLIP(**clip_config(vocabulary)["model_cfg"])


def encode_images(model: Any, images: NDArray[np.uint8]) -> torch.Tensor:
    """Return unit vectors (N, 128) of images (N, 64, 64, 3)."""
    device = model.logit_scale.device
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    return model.encode_image((pixels - MEAN) / STD, normalize=True)


def tokenize(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Return ids (N, longest caption); the tower is causal, so padding does not change the result."""
    ids = tokenizer(
        list(captions), padding=True, truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt"
    ).input_ids
    return ids


def encode_texts(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return unit vectors (N, 128) of token ids of any length up to the context length."""
    ids = ids.to(model.logit_scale.device)
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]  # the end token has the highest id
    return F.normalize(pooled @ model.text_projection, dim=-1)


# Frequency of each attribute as the one that differs within a group of a batch. The first stage has mostly
# shapes, which are the hardest; the second has attributes that retrieval among random captions hardly needs;
# the third trains only the image tower, on degraded images.
STAGE1_WEIGHTS = {"shape": 5, "colour": 1, "background": 1, "style": 1, "size": 1, "position": 1}
STAGE2_WEIGHTS = {"shape": 3, "colour": 1, "background": 1, "style": 1, "size": 2, "position": 5}
STAGE3_WEIGHTS = {"shape": 5, "colour": 1, "background": 1, "style": 3, "size": 2, "position": 2}


def hard_negative_batch(
    rng: np.random.Generator, size: int, attribute_weights: Mapping[str, int] = STAGE1_WEIGHTS
) -> tuple[list[shape_world.Scene], list[str]]:
    """Return scenes and captions: a third random, two thirds in groups that differ in one attribute."""
    scenes: list[shape_world.Scene] = []
    captions: list[str] = []
    kinds = [name for name, weight in attribute_weights.items() for _ in range(weight)]
    while len(scenes) < size:
        scene = shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES)
        if len(scenes) < size // 3:
            group, keep = [scene], set[str]()
        else:
            kind = str(rng.choice(kinds))
            group = [
                shape_world.jitter_scene(rng, shape_world.with_attribute(scene, kind, value))
                for value in shape_world.ATTRIBUTES[kind]
            ]
            group, keep = [s for s in group if s.colour != s.background], {kind}
        for member in group:
            if not shape_world.is_held_out(member):
                scenes.append(member)
                captions.append(shape_world.random_caption(rng, member, keep=keep, filler_rate=0.15))
    return scenes[:size], captions[:size]


def degrade_images(rng: np.random.Generator, scenes: Sequence[shape_world.Scene]) -> NDArray[np.uint8]:
    """Return images like those of a partly trained model: pale patterns, soft edges, noise (N, 64, 64, 3).

    Trained only on perfect images, CLIP does not recognize a slightly filled stripe.
    """
    images = shape_world.render_scenes(scenes).astype(np.float32)
    solid = shape_world.render_scenes([replace(scene, style="solid") for scene in scenes])
    count = len(scenes)

    def random_strength(share: float, low: float, high: float) -> NDArray[np.float32]:
        strength = rng.uniform(low, high, count) * (rng.random(count) < share)
        return strength.astype(np.float32)[:, None, None, None]

    pale = (
        random_strength(0.4, 0.0, 0.5)
        * np.array([s.style in ("dotted", "striped") for s in scenes])[:, None, None, None]
    )
    images += pale * (solid - images)
    for axis in (1, 2):
        neighbours = (np.roll(images, 1, axis) + np.roll(images, -1, axis)) / 2
        images += random_strength(0.4, 0.2, 0.7) * (neighbours - images)
    images += random_strength(0.3, 0.0, 16.0) * rng.standard_normal(images.shape, np.float32)
    return np.clip(images, 0, 255).astype(np.uint8)


def contrastive_loss(model: Any, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of the matching pairs in both directions (Radford et al., 2021)."""
    logits = model.logit_scale.exp() * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def retrieval_recall(model: Any, tokenizer: Any, *, count: int = 512, seed: int = 1) -> float:
    """Return the share of `count` unseen images whose caption CLIP ranks first among all captions (R@1)."""
    rng = np.random.default_rng(seed)
    scenes: dict[str, shape_world.Scene] = {}
    while len(scenes) < count:
        scene = shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES)
        if shape_world.is_held_out(scene):
            scenes.setdefault(shape_world.scene_caption(scene, include_solid=True), scene)
    images = encode_images(model, shape_world.render_scenes(list(scenes.values())))
    texts = encode_texts(model, tokenize(tokenizer, list(scenes)))
    predicted = (images @ texts.T).argmax(1).cpu()
    return float((predicted == torch.arange(count)).float().mean())


def export_clip(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder in 16 bit that `open_clip.create_model("local-dir:...")` and `get_tokenizer` read."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    storage.write_json(folder / "open_clip_config.json", clip_config(len(tokenizer)))
    storage.write_safetensors(folder / "open_clip_model.safetensors", tensors, {"format": "pt"})
    save_tokenizer(tokenizer, folder)


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Load the trained CLIP in float32 and its `transformers` tokenizer."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    model = build_clip(len(tokenizer))
    model.load_state_dict(storage.read_safetensors(folder / "open_clip_model.safetensors"))
    return model.eval(), tokenizer


def pretrain_clip(
    job: PretrainJob,
    folder: Path,
    *,
    batch: int = 256,
    lr: float = 2e-3,
    attribute_weights: Mapping[str, int] = STAGE1_WEIGHTS,
    start: Path | None = None,
    degrade: bool = False,
) -> Any:
    """Train a new CLIP, or the one in `start`, and export to `folder`; return the averaged model.

    With `degrade` only the image tower is trained, on images of `degrade_images`.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(job.seed)
    model = (load_clip(start)[0] if start else build_clip(len(tokenizer))).train().to(job.device)
    if degrade:
        model.requires_grad_(False).visual.requires_grad_(True)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        scenes, captions = hard_negative_batch(rng, batch, attribute_weights)
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # ln 100, as in CLIP
        images = encode_images(
            model, degrade_images(rng, scenes) if degrade else shape_world.render_scenes(scenes)
        )
        with torch.set_grad_enabled(not degrade):
            texts = encode_texts(model, tokenize(tokenizer, captions))
        return contrastive_loss(model, images.float(), texts.float())

    def milestone(averaged: Any, note: str) -> None:
        share = retrieval_recall(averaged, tokenizer)
        print(f"{job.name} {note}: R@1 among 512 {share:.3f}", flush=True)
        storage.append_jsonl(job.out / f"{job.name}.jsonl", {"note": note, "retrieval": share})
        export_clip(averaged, tokenizer, folder)

    return run_training_loop(
        job, model, build_optimizers(model, lr, adamw_names=("embedding", "conv1")), loss, milestone
    )
