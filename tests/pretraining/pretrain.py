"""Pre-train the embedded weights: `python -m tests.pretraining.pretrain --out DIR`.

The stages are `clip`, whose text tower is the text encoder of both base models; `autoencoder`; then `dit` and
`unet`, which can run in parallel. The same command resumes a stage, and a stage reads the results of earlier
ones from DIR. DIR/weights has the layout of lorakit/quickstart/weights.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorakit.core.errors import ConfigError, LorakitError
from tests.pretraining import autoencoder, clip, denoisers
from tests.pretraining.loop import PretrainJob

# Minutes on one core for the committed weights (the two denoisers shared the core with other work).
MINUTES = {"clip": 63.0, "autoencoder": 10.0, "dit": 84.0, "unet": 84.0}
CLIP_STAGE_SHARES = (0.32, 0.47, 0.21)  # of CLIP's minutes, for `clip.STAGE1_WEIGHTS` and so on
KINDS = {"dit": "tiny-dit", "unet": "tiny-unet"}


def milestone_minutes(minutes: float) -> list[float]:
    """Return the minutes at which a model is assessed: after a twentieth, then every tenth of its time."""
    return [minutes * share / 20 for share in (1, 2, *range(4, 20, 2))]


def _require_stage(folder: Path, stage: str) -> Path:
    if not folder.is_dir():
        raise ConfigError(
            f"stage {stage} must come first",
            where=str(folder),
            remedy=f"run with --stage {stage} and the same --out",
        )
    return folder


def run_stage(stage: str, out: Path, minutes: float, device: str, *, seed: int = 0) -> None:
    """Train one stage for `minutes` in total and export it; ConfigError if an earlier stage is missing."""
    weights, vae_folder = out / "weights", out / "vae"
    if stage == "clip":
        _train_clip(out, minutes, device, seed)
    elif stage == "autoencoder":
        job = _job(stage, out, minutes, device, seed, warmup_steps=50, ema_decay=0.995)
        autoencoder.pretrain_autoencoder(job, vae_folder)
    else:
        kind = KINDS[stage]
        tower = clip.load_clip(_require_stage(weights / "clip", "clip"))
        vae = autoencoder.load_autoencoder(_require_stage(vae_folder, "autoencoder"))
        job = _job(stage, out, minutes, device, seed, lr_decay_fraction=0.45, ema_decay=0.999)
        denoisers.pretrain_denoiser(job, kind, weights / kind, clip=tower, vae=vae)


def _job(stage: str, out: Path, minutes: float, device: str, seed: int, **changes: Any) -> PretrainJob:
    return PretrainJob(
        stage, out / "state", minutes, device, seed, milestones=milestone_minutes(minutes), **changes
    )


def _train_clip(out: Path, minutes: float, device: str, seed: int) -> None:
    """Train CLIP in three stages, each from the averaged weights of the one before."""
    foundation, fine = out / "clip-foundation", out / "clip-fine"
    first, second, third = (minutes * share for share in CLIP_STAGE_SHARES)
    clip.pretrain_clip(_job("clip-foundation", out, first, device, seed, warmup_steps=40), foundation)
    fine_tuning: dict[str, Any] = {"warmup_steps": 10, "lr_decay_fraction": 0.6}
    job = _job("clip-fine", out, second, device, seed + 1, **fine_tuning)
    clip.pretrain_clip(job, fine, attribute_weights=clip.STAGE2_WEIGHTS, start=foundation, lr=1.5e-3)
    job = _job("clip-degraded", out, third, device, seed + 2, **fine_tuning)
    clip.pretrain_clip(
        job,
        out / "weights" / "clip",
        attribute_weights=clip.STAGE3_WEIGHTS,
        start=fine,
        lr=1.5e-3,
        degrade=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.pretraining.pretrain", description=__doc__)
    parser.add_argument("--stage", choices=[*MINUTES, "all"], default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and finished weights")
    parser.add_argument("--minutes", type=float, help="time budget of this stage, or of all stages together")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    options = parser.parse_args(arguments)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    stages = list(MINUTES) if options.stage == "all" else [options.stage]
    scale = options.minutes / sum(MINUTES[stage] for stage in stages) if options.minutes else 1.0
    try:
        for stage in stages:
            run_stage(stage, options.out, MINUTES[stage] * scale, options.device)
    except LorakitError as error:
        print(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
