"""The world's CLIP: how it is built, trained, asked and saved. Its text tower conditions the bases."""

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
    """open_clip's `open_clip_config.json`. `hf_tokenizer_name` makes it read the folder's own tokenizer."""
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
    """An untrained CLIP."""
    import open_clip

    return open_clip.CLIP(**clip_config(vocabulary)["model_cfg"])


def encode_images(model: Any, pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Unit vectors (N, 128) of pictures (N, 64, 64, 3)."""
    device = model.logit_scale.device
    pixels = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 255
    return model.encode_image((pixels - MEAN) / STD, normalize=True)


def tokenize(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Ids (N, longest caption): the tower is causal, so nothing after the end token can change the result."""
    ids = tokenizer(
        list(captions), padding=True, truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt"
    ).input_ids
    return ids


def encode_texts(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Unit vectors (N, 128) of token ids of any length up to the context."""
    ids = ids.to(model.logit_scale.device)
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]  # the end token has the highest id
    return F.normalize(pooled @ model.text_projection, dim=-1)


# How often each attribute is the one that a group of a batch differs in. First shapes, which are the hardest
# to tell; the second part dwells on what a retrieval among random captions hardly needs; in the third, which
# leaves the text tower alone, the pictures are rough.
STAGE1_WEIGHTS = {"shape": 5, "colour": 1, "background": 1, "style": 1, "size": 1, "position": 1}
STAGE2_WEIGHTS = {"shape": 3, "colour": 1, "background": 1, "style": 1, "size": 2, "position": 5}
STAGE3_WEIGHTS = {"shape": 5, "colour": 1, "background": 1, "style": 3, "size": 2, "position": 2}


def hard_negative_batch(
    rng: np.random.Generator, size: int, groups: Mapping[str, int] = STAGE1_WEIGHTS
) -> tuple[list[shape_world.Scene], list[str]]:
    """A third of random scenes, two thirds in groups that differ in one attribute, which captions say."""
    scenes: list[shape_world.Scene] = []
    captions: list[str] = []
    kinds = [name for name, weight in groups.items() for _ in range(weight)]
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
    """Pictures as a model half way would draw them: patterns pale, edges soft, colours noisy (N, 64, 64, 3).

    Trained on perfect pictures alone, CLIP calls a slightly filled stripe anything.
    """
    pictures = shape_world.render_scenes(scenes).astype(np.float32)
    solid = shape_world.render_scenes([replace(scene, style="solid") for scene in scenes])
    count = len(scenes)

    def some(share: float, low: float, high: float) -> NDArray[np.float32]:
        strength = rng.uniform(low, high, count) * (rng.random(count) < share)
        return strength.astype(np.float32)[:, None, None, None]

    pale = (
        some(0.4, 0.0, 0.5)
        * np.array([s.style in ("dotted", "striped") for s in scenes])[:, None, None, None]
    )
    pictures += pale * (solid - pictures)
    for axis in (1, 2):
        neighbours = (np.roll(pictures, 1, axis) + np.roll(pictures, -1, axis)) / 2
        pictures += some(0.4, 0.2, 0.7) * (neighbours - pictures)
    pictures += some(0.3, 0.0, 16.0) * rng.standard_normal(pictures.shape, np.float32)
    return np.clip(pictures, 0, 255).astype(np.uint8)


def contrastive_loss(model: Any, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the right partner, both ways (Radford et al., 2021)."""
    logits = model.logit_scale.exp() * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def retrieval_recall(model: Any, tokenizer: Any, *, count: int = 512, seed: int = 1) -> float:
    """Share of `count` unseen pictures for which CLIP picks the right caption among all of theirs (R@1)."""
    rng = np.random.default_rng(seed)
    chosen: dict[str, shape_world.Scene] = {}
    while len(chosen) < count:
        scene = shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES)
        if shape_world.is_held_out(scene):
            chosen.setdefault(shape_world.scene_caption(scene, say_solid=True), scene)
    images = encode_images(model, shape_world.render_scenes(list(chosen.values())))
    texts = encode_texts(model, tokenize(tokenizer, list(chosen)))
    found = (images @ texts.T).argmax(1).cpu()
    return float((found == torch.arange(count)).float().mean())


def export_clip(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the folder that `open_clip.create_model("local-dir:...")` and `get_tokenizer` read, in 16 bit."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    storage.write_json(folder / "open_clip_config.json", clip_config(len(tokenizer)))
    storage.write_safetensors(folder / "open_clip_model.safetensors", tensors, {"format": "pt"})
    save_tokenizer(tokenizer, folder)


def load_clip(folder: Path) -> tuple[Any, Any]:
    """The trained CLIP in float32 and its `transformers` tokenizer."""
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
    groups: Mapping[str, int] = STAGE1_WEIGHTS,
    start: Path | None = None,
    rough: bool = False,
) -> Any:
    """Train from nothing, or from the CLIP in `start`, and export to `folder`; returns the averaged model.

    With `rough` only the image tower learns, from pictures as `roughen` makes them.
    """
    tokenizer = build_tokenizer()
    torch.manual_seed(job.seed)
    model = (load_clip(start)[0] if start else build_clip(len(tokenizer))).train().to(job.device)
    if rough:
        model.requires_grad_(False).visual.requires_grad_(True)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        scenes, captions = hard_negative_batch(rng, batch, groups)
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # ln 100, as in CLIP
        images = encode_images(
            model, degrade_images(rng, scenes) if rough else shape_world.render_scenes(scenes)
        )
        with torch.set_grad_enabled(not rough):
            texts = encode_texts(model, tokenize(tokenizer, captions))
        return contrastive_loss(model, images.float(), texts.float())

    def milestone(averaged: Any, note: str) -> None:
        share = retrieval_recall(averaged, tokenizer)
        print(f"{job.name} {note}: R@1 among 512 {share:.3f}", flush=True)
        storage.append_jsonl(job.out / f"{job.name}.jsonl", {"note": note, "retrieval": share})
        export_clip(averaged, tokenizer, folder)

    return run_training_loop(
        job, model, build_optimizers(model, lr, plain=("embedding", "conv1")), loss, milestone
    )
