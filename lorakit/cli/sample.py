"""`lorakit sample`, and the sampling options that it shares with `lorakit eval run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorakit.core.command_line import (
    FILE,
    FOLDER,
    POSITIVE,
    add_options,
    command,
    is_quiet,
    option,
    print_answer,
)

if TYPE_CHECKING:
    from lorakit.sampling.pipeline import SamplingOptions

_SAMPLING = "Sampling"
sampling_options = add_options(
    option("--num-inference-steps", type=POSITIVE, default=20, metavar="N", section=_SAMPLING,
           help="Sampler steps for each image."),
    option("--guidance-scale", type=float, metavar="SCALE", section=_SAMPLING,
           help="Classifier-free guidance scale; by default the base model's."),
    option("--sampler", metavar="NAME", section=_SAMPLING,
           help="ddim, ddpm, dpm++2m, dpm++2m-karras, dpm++2m-sde, euler, euler-a, heun or unipc; by default "
           "the base model's."),
    option("--size", metavar="WIDTHxHEIGHT", section=_SAMPLING,
           help="Size in pixels; by default a square of the adapter's resolution, or of the base model's."),
    option("--frames", "num_frames", type=POSITIVE, metavar="N", section=_SAMPLING,
           help="Number of video frames; by default as trained."),
    option("--batch-size", type=POSITIVE, default=8, metavar="N", section=_SAMPLING,
           help="Images generated at once; reduced when memory runs out."),
    option("--quantize", type=click.Choice(["nf4", "int8", "fp8", "none"]), section=_SAMPLING,
           help="Quantize the base model; by default as in the training of the adapter."),
    option("--stream", type=click.FloatRange(0, 1), metavar="SHARE", section=_SAMPLING,
           help="Share of the base model's blocks, 0 to 1, that stay in the machine's memory and visit the "
           "GPU one by one; by default as in the training of the adapter."),
    option("--provenance", type=click.Choice(["text", "c2pa", "none"]), default="text", section=_SAMPLING,
           help="Contents of image files beside the pixels: prompt, seed, settings and hashes as text; c2pa "
           "adds a signed manifest."),
    option("--img2img-strength", type=float, metavar="S", section=_SAMPLING,
           help="Start from the `image` of each row of the prompt file: 0 keeps it, 1 ignores it."),
    option("--controlnet", metavar="DIR[:SCALE]", section=_SAMPLING,
           help="ControlNet of the base model, for the `image` of each row of the prompt file."),
    option("--ip-adapter", metavar="DIR[:SCALE]", section=_SAMPLING,
           help="IP-Adapter of the base model, for the `image` of each row of the prompt file."),
)  # fmt: skip


def parse_sampling_options(values: dict[str, Any]) -> SamplingOptions:
    """Return the values of `sampling_options` as the library's options."""
    from lorakit.sampling import controls
    from lorakit.sampling.pipeline import SamplingOptions, parse_size

    return SamplingOptions(
        num_inference_steps=values["num_inference_steps"],
        guidance_scale=values["guidance_scale"],
        size=parse_size(values["size"]),
        batch_size=values["batch_size"],
        quiet=is_quiet(),
        sampler=values["sampler"],
        control=controls.parse_control(
            values["img2img_strength"], values["controlnet"], values["ip_adapter"]
        ),
        num_frames=values["num_frames"],
        quantize=values["quantize"],
        stream=values["stream"],
        provenance=values["provenance"],
    )


@command(
    "sample",
    click.argument("base", metavar="BASE", 
                   help="Base model: tiny-unet, tiny-dit, a diffusers folder, .safetensors file or hub id."),
    option("--adapter", multiple=True, metavar="FILE[:STRENGTH]",
           help="Adapter file, run (its selected checkpoint) or RUN@STEP, such as runs/dog@400:0.8; may be "
           "given several times: they add up."),
    option("--prompts", required=True, type=FILE, metavar="FILE",
           help="Prompt file: JSONL, JSON, YAML, TOML, CSV, TSV or text; its own size, steps, guidance and "
           "seeds come before the options."),
    option("--out", type=FOLDER, default="samples", metavar="DIR", help="Folder of the images."),
    sampling_options,
    example="lorakit sample tiny-dit --adapter runs/dog:0.8 --prompts prompts.jsonl",
)  # fmt: skip
def sample_command(base: str, adapter: tuple[str, ...], prompts: Path, out: Path, **values: Any) -> None:
    """Generate images from prompts."""
    from lorakit.sampling.pipeline import sample_to_folder

    files = sample_to_folder(out, base, adapter, prompts, parse_sampling_options(values))
    print_answer([str(file) for file in files], f"{len(files)} images in {out}")
