"""Pre-training of the two denoisers on cached latents, with captions encoded by their own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorakit.core import storage
from lorakit.quickstart import shape_world
from tests.pretraining import assess, autoencoder, models
from tests.pretraining.loop import PretrainJob, run_training_loop
from tests.pretraining.muon import build_optimizers

GUIDANCE_DROPOUT = 0.1  # share of empty captions, for classifier-free guidance
JITTERS_PER_SCENE = 3  # jittered images of every composition

TextEmbeddings = dict[str, torch.Tensor]


@dataclass
class LatentPool:
    """Scaled latents (N, 4, 16, 16) in 16 bit and their scenes."""

    latents: torch.Tensor
    scenes: list[shape_world.Scene]

    def batch(self, rng: np.random.Generator, size: int, device: str) -> tuple[torch.Tensor, list[str]]:
        """Return random latents and a new caption of each, some of them empty."""
        chosen = rng.integers(0, len(self.scenes), size)
        captions = [
            "" if rng.random() < GUIDANCE_DROPOUT else shape_world.random_caption(rng, self.scenes[i])
            for i in chosen
        ]
        return self.latents[torch.from_numpy(chosen)].to(device).float(), captions


def build_latent_pool(vae: Any, file: Path, *, compositions: int | None = None, seed: int = 0) -> LatentPool:
    """Encode the base scenes once into `file`; `compositions` limits their number for a short rebuild."""
    rng = np.random.default_rng(seed)
    training_scenes = [
        s
        for s in shape_world.all_scenes(shape_world.BASE_SHAPES, shape_world.BASE_STYLES)
        if not shape_world.is_held_out(s)
    ]
    if compositions:
        training_scenes = [training_scenes[i] for i in rng.permutation(len(training_scenes))[:compositions]]
    scenes = [
        shape_world.jitter_scene(rng, scene) for scene in training_scenes for _ in range(JITTERS_PER_SCENE)
    ]
    if not file.exists():
        with torch.autocast(vae.device.type, dtype=torch.bfloat16):
            parts = [scenes[i : i + 512] for i in range(0, len(scenes), 512)]
            latents = [
                autoencoder.encode_scene_latents(vae, shape_world.render_scenes(part)).float().cpu()
                for part in parts
            ]
        storage.write_safetensors(file, {"latents": (torch.cat(latents) * vae.config.scaling_factor).half()})
    return LatentPool(storage.read_safetensors(file)["latents"], scenes)


def _noise_level(size: int, device: str) -> torch.Tensor:
    """Return sigma in (0, 1): logit-normal (Esser et al., 2024), a fifth uniform to cover both ends."""
    sigma = torch.sigmoid(torch.randn(size, device=device))
    return torch.where(torch.rand(size, device=device) < 0.2, torch.rand(size, device=device), sigma)


def flow_loss(dit: Any, latents: torch.Tensor, text_embeddings: TextEmbeddings) -> torch.Tensor:
    """Return the rectified flow loss.

    noisy = (1 - sigma) clean + sigma noise, target = noise - clean, timestep = 1000 sigma.
    """
    sigma = _noise_level(len(latents), str(latents.device))
    noise = torch.randn_like(latents)
    level = sigma.view(-1, 1, 1, 1)
    output = dit(
        hidden_states=latents.lerp(noise, level),
        timestep=1000 * sigma,
        encoder_hidden_states=text_embeddings["prompt_embeds"],
        pooled_projections=text_embeddings["pooled_prompt_embeds"],
    ).sample
    return (output.float() - (noise - latents)).square().mean()


def velocity_loss(
    unet: Any, latents: torch.Tensor, text_embeddings: TextEmbeddings, alphas: torch.Tensor
) -> torch.Tensor:
    """Return the DDPM loss with v-prediction.

    noisy = a clean + s noise, target = a noise - s clean, with a and s from the schedule. Timesteps are
    sampled so that s / (a + s) has the distribution of the flow's sigma: most of a uniform distribution would
    be at noise levels where latents as small as these are invisible.
    """
    a, s = alphas.sqrt(), (1 - alphas).sqrt()
    sigma = _noise_level(len(latents), str(latents.device))
    step = torch.searchsorted(s / (a + s), sigma).clamp(max=len(alphas) - 1)
    step = torch.where(torch.rand_like(sigma) < 0.05, len(alphas) - 1, step)  # where sampling starts
    noise = torch.randn_like(latents)
    a, s = a[step].view(-1, 1, 1, 1), s[step].view(-1, 1, 1, 1)
    output = unet(a * latents + s * noise, step, text_embeddings["prompt_embeds"]).sample
    return (output.float() - (a * noise - s * latents)).square().mean()


@torch.no_grad()
def encode_caption_batch(pipe: Any, captions: list[str], device: str) -> TextEmbeddings:
    """Encode captions with the pipeline's `encode_prompt` and the sequence length of the base model."""
    with torch.autocast(device.split(":")[0], enabled=False):
        if hasattr(pipe, "transformer"):
            length = models.T5_SEQUENCE_LENGTH
            encoded = pipe.encode_prompt(
                captions,
                None,
                None,
                device=device,
                do_classifier_free_guidance=False,
                max_sequence_length=length,
            )
            return {"prompt_embeds": encoded[0], "pooled_prompt_embeds": encoded[2]}
        return {"prompt_embeds": pipe.encode_prompt(captions, device, 1, False)[0]}


def _loss(
    pipe: Any, pool: LatentPool, batch: int, device: str
) -> Callable[[np.random.Generator], torch.Tensor]:
    def flow(rng: np.random.Generator) -> torch.Tensor:
        latents, captions = pool.batch(rng, batch, device)
        return flow_loss(pipe.transformer, latents, encode_caption_batch(pipe, captions, device))

    def velocity(rng: np.random.Generator) -> torch.Tensor:
        latents, captions = pool.batch(rng, batch, device)
        alphas = pipe.scheduler.alphas_cumprod.to(device)
        return velocity_loss(pipe.unet, latents, encode_caption_batch(pipe, captions, device), alphas)

    return flow if hasattr(pipe, "transformer") else velocity


def pretrain_denoiser(
    job: PretrainJob,
    kind: str,
    folder: Path,
    *,
    clip: tuple[Any, Any],
    vae: Any,
    batch: int = 64,
    lr: float = 3e-3,
    compositions: int | None = None,
    assess_count: int = 64,
) -> Any:
    """Train the denoiser of one of `models.PIPELINE_CLASSES`, export to `folder`; return the averaged model.

    `clip` (model, tokenizer) is the text encoder, and measures the accuracy of `assess_count` images at
    milestones.
    """
    clip_model, tokenizer = clip
    torch.manual_seed(job.seed)
    denoiser = (models.build_dit() if kind == "tiny-dit" else models.build_unet()).to(job.device)
    pool = build_latent_pool(vae, job.out / "latents.safetensors", compositions=compositions)
    pipe = models.build_pipeline(kind, denoiser, vae, clip_model, tokenizer).to(job.device)

    def milestone(averaged: Any, note: str) -> None:
        finished = models.build_pipeline(kind, averaged, vae, clip_model, tokenizer).to(job.device)
        models.save_pipeline(finished, folder)
        if assess_count:
            finished.set_progress_bar_config(disable=True)
            accuracy = assess.measure_accuracy(finished, clip_model, tokenizer, count=assess_count, seed=1)
            storage.save_image(
                job.out / f"{kind}-{note.replace(' ', '')}.png", assess.image_grid(accuracy.images)
            )
            storage.append_jsonl(job.out / f"{job.name}.jsonl", {"note": note, **accuracy.shares})
            print(f"{job.name} {note}: {accuracy.shares}", flush=True)

    adamw_names = ("pos_embed", "proj_out", "conv_in", "conv_out", "time_text_embed", "time_embedding")
    return run_training_loop(
        job,
        denoiser,
        build_optimizers(denoiser, lr, adamw_names=adamw_names),
        _loss(pipe, pool, batch, job.device),
        milestone,
    )
