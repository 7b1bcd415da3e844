"""How the embedded weights are made: `python -m lorakit.quickstart.pretrain --out DIR`.

The stages build on each other: `clip`, whose text tower conditions both bases; `autoencoder`; `judge`, the
same CLIP trained further on what judging needs; `dit` and `unet`, which may run side by side. Each goes on
where it stopped when the same command is given again, and finds what the earlier ones left in DIR. Finished
folders lie in DIR/weights, laid out as those that are committed.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from lorakit.errors import ConfigError, LorakitError
from lorakit.quickstart import autoencoder, clip, denoisers
from lorakit.quickstart.loop import Job

# Minutes of one core that the committed weights were given (the two denoisers shared theirs with other work).
MINUTES = {"clip": 20.0, "autoencoder": 10.0, "judge": 8.0, "dit": 84.0, "unet": 84.0}
KINDS = {"dit": "tiny-dit", "unet": "tiny-unet"}


def milestones(minutes: float) -> list[float]:
    """When to look at a model: after a twentieth, then every tenth of its time."""
    return [minutes * share / 20 for share in (1, 2, *range(4, 20, 2))]


def _needed(folder: Path, stage: str) -> Path:
    if not folder.is_dir():
        raise ConfigError(
            f"stage {stage} must come first",
            where=str(folder),
            remedy=f"run with --stage {stage} and the same --out",
        )
    return folder


def run_stage(stage: str, out: Path, minutes: float, device: str, *, seed: int = 0) -> None:
    """Train one stage for `minutes` in all and export it; `ConfigError` where an earlier one is missing."""
    job = Job(stage, out / "state", minutes, device, seed, milestones=milestones(minutes))
    foundation, vae_folder, weights = out / "foundation", out / "vae", out / "weights"
    if stage == "clip":
        job.warmup = 40
        clip.pretrain(job, foundation)
    elif stage == "autoencoder":
        job.warmup, job.average = 50, 0.995
        autoencoder.pretrain(job, vae_folder)
    elif stage == "judge":
        job.warmup, job.decay, job.seed = 10, 0.6, seed + 1
        start = _needed(foundation, "clip")
        clip.pretrain(job, weights / "clip", groups=clip.JUDGE, start=start, lr=1.5e-3)
    else:
        job.decay, job.average = 0.45, 0.999
        tower = clip.load(_needed(foundation, "clip"))
        vae = autoencoder.load(_needed(vae_folder, "autoencoder"))
        judge = weights / "clip"
        denoisers.pretrain(
            job,
            KINDS[stage],
            weights / KINDS[stage],
            clip=tower,
            judge=clip.load(judge)[0] if judge.is_dir() else tower[0],
            vae=vae,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lorakit.quickstart.pretrain", description=__doc__)
    parser.add_argument("--stage", choices=[*MINUTES, "all"], default="all")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and finished weights")
    parser.add_argument(
        "--minutes", type=float, help="budget of this stage, or of all in their usual proportion"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--threads", type=int, default=1, help="more than one only on an otherwise idle machine"
    )
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
        print("stopped; the same command goes on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
