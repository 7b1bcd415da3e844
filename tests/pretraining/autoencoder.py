"""The autoencoder: pixels in [-1, 1] to four-channel latents at a quarter of the size, and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core import storage
from lorakit.quickstart import shape_world
from tests.pretraining.loop import PretrainJob, run_training_loop
from tests.pretraining.muon import build_optimizers

CROP = 32  # side of a training crop: half of the side costs a quarter, and the task is local
KL_WEIGHT = 1e-4  # per latent element; 2e-3 washed out small shapes


def build_autoencoder(scaling_factor: float = 1.0) -> Any:
    """Return an untrained `AutoencoderKL`, without a shift, because `StableDiffusionPipeline` ignores it."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=shape_world.IMAGE_SIZE,
        scaling_factor=scaling_factor,
        shift_factor=0.0,
    )


def to_pixels(images: NDArray[np.uint8], device: str | torch.device = "cpu") -> torch.Tensor:
    """Convert (N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return L1 + L2 + L1 of the image gradients, which keeps edges sharp."""
    error = output - pixels
    horizontal = (error[..., 1:] - error[..., :-1]).abs().mean()
    vertical = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * (horizontal + vertical)


def _training_crops(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    scenes = [shape_world.random_scene(rng, shape_world.SHAPES, shape_world.STYLES) for _ in range(count)]
    images = shape_world.render_scenes(scenes)
    # Positions beyond the border are clipped to it, so that borders and corners are frequent.
    corners = np.clip(
        rng.integers(-8, shape_world.IMAGE_SIZE - CROP + 9, (count, 2)), 0, shape_world.IMAGE_SIZE - CROP
    )
    return np.stack([p[y : y + CROP, x : x + CROP] for p, (y, x) in zip(images, corners, strict=True)])


@torch.no_grad()
def psnr(vae: Any, *, count: int = 128, seed: int = 1, styles: tuple[str, ...] = shape_world.STYLES) -> float:
    """Return the decibels of reconstructions of whole images with all shapes."""
    rng = np.random.default_rng(seed)
    images = shape_world.render_scenes(
        [shape_world.random_scene(rng, shape_world.SHAPES, styles) for _ in range(count)]
    )
    errors = []
    for part in np.array_split(images, max(1, count // 32)):
        pixels = to_pixels(part, vae.device)
        output = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append((output - pixels).square().mean().item() / 4)  # of pixels in [0, 1]
    return -10 * math.log10(float(np.mean(errors)))


@torch.no_grad()
def encode_scene_latents(vae: Any, images: NDArray[np.uint8], batch: int = 64) -> torch.Tensor:
    """Return unscaled latent means (N, 4, H/4, W/4)."""
    parts = (images[i : i + batch] for i in range(0, len(images), batch))
    return torch.cat([vae.encode(to_pixels(part, vae.device)).latent_dist.mode() for part in parts])


def measure_scaling_factor(vae: Any, *, count: int = 512, seed: int = 2) -> float:
    """Return one over the standard deviation of the latents of base scenes."""
    rng = np.random.default_rng(seed)
    return 1.0 / float(
        encode_scene_latents(
            vae, shape_world.render_scenes([shape_world.random_scene(rng) for _ in range(count)])
        ).std()
    )


def export_autoencoder(vae: Any, folder: Path) -> None:
    """Write a diffusers folder in 16 bit with the measured scaling factor."""
    vae.register_to_config(scaling_factor=round(measure_scaling_factor(vae), 4))
    tensors = {name: tensor.half() for name, tensor in vae.state_dict().items()}
    storage.write_text(folder / "config.json", vae.to_json_string())
    storage.write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})


def load_autoencoder(folder: Path) -> Any:
    """Load the trained autoencoder in float32."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, dtype=torch.float32).eval()


def pretrain_autoencoder(job: PretrainJob, folder: Path, *, batch: int = 48, lr: float = 2e-3) -> Any:
    """Train and export to `folder`; return the averaged model."""
    torch.manual_seed(job.seed)
    vae = build_autoencoder().to(job.device)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        pixels = to_pixels(_training_crops(rng, batch), job.device)
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.sample()).sample.float()
        return (
            reconstruction_loss(output, pixels)
            + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        )

    def milestone(averaged: Any, note: str) -> None:
        decibels = {s: round(psnr(averaged, count=32, styles=(s,)), 2) for s in shape_world.STYLES}
        decibels["all"] = round(psnr(averaged, count=64), 2)
        print(f"{job.name} {note}: PSNR {decibels}", flush=True)
        storage.append_jsonl(job.out / f"{job.name}.jsonl", {"note": note, **decibels})
        export_autoencoder(averaged, folder)

    return run_training_loop(job, vae, build_optimizers(vae, lr), loss, milestone)
