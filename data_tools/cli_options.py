"""Arguments of captioners, shapes and masks on the command line, and the options they make.

Like `commands`, this loads nothing heavy until a command runs.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_tools.assign_buckets import BucketOptions
    from data_tools.conditioning.controls import ControlOptions
    from data_tools.conditioning.segment import SegmentOptions


def positive_int(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def add_captioner_options(parser: argparse.ArgumentParser) -> None:
    """What a model that captions is asked, and where it runs."""
    group = parser.add_argument_group("captions by a model")
    group.add_argument("--model", metavar="M", help="folder or hub id: image-to-text model or WD tagger")
    group.add_argument(
        "--server", metavar="URL", help="an OpenAI-compatible server: http://127.0.0.1:8000/v1"
    )
    group.add_argument(
        "--key-env", default="LORAKIT_CAPTION_KEY", metavar="NAME", help="variable with its key"
    )
    group.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="again for another variant"
    )
    group.add_argument("--variants", type=positive_int, default=1, metavar="N", help="answers to each prompt")
    group.add_argument("--add", action="store_true", help="also where a person wrote a caption, as a variant")
    group.add_argument("--again", action="store_true", help="also where this model answered before")
    group.add_argument("--tokens", type=positive_int, default=300, metavar="N", help="of the longest answer")
    group.add_argument("--temperature", type=float, metavar="T", help="0: the likeliest answer (default)")
    group.add_argument(
        "--at-once", type=positive_int, default=4, metavar="N", help="questions at once (default 4)"
    )
    group.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds an answer may take")
    group.add_argument(
        "--side", type=positive_int, default=1024, metavar="PX", help="longest side that is shown"
    )
    group.add_argument("--threshold", type=float, default=0.35, metavar="P", help="of a tagger's tags")
    group.add_argument(
        "--character-threshold", type=float, default=0.85, metavar="P", help="of its characters"
    )
    group.add_argument("--device", metavar="NAME", help="cuda, cpu, ... (default: cuda when there is one)")


def add_caption_edit_options(parser: argparse.ArgumentParser) -> None:
    """What is done to captions, and how they are counted."""
    group = parser.add_argument_group("edits and tokens")
    group.add_argument(
        "--edit",
        action="append",
        metavar="EDIT",
        help="in order: strip-preamble, trigger=sks, prefix=, suffix=, replace=/A/B/, alias=a:b, drop=a,b, "
        "dedupe, shuffle=N, sentences=N, words=N; none: the captions as they were written",
    )
    group.add_argument("--base", metavar="BASE", help="count tokens as this model does, and name lost words")


def add_bucket_options(parser: argparse.ArgumentParser) -> None:
    """Resolution, buckets and crops."""
    group = parser.add_argument_group("shapes")
    group.add_argument("--resolution", type=positive_int, default=1024, metavar="PX", help="default 1024")
    group.add_argument(
        "--tiers", type=_parse_resolutions, default=(), metavar="PX,PX", help="several, without enlarging"
    )
    group.add_argument("--upscale", action="store_true", help="enlarge what is below the smallest tier")
    group.add_argument(
        "--step", type=positive_int, default=16, metavar="PX", help="sides are multiples of it"
    )
    modes = ["auto", "native", "square", "kohya"]
    group.add_argument("--mode", choices=modes, default="auto", help="default auto")
    group.add_argument("--batch", type=positive_int, default=1, metavar="N", help="batch size to fill")
    crops = ["centre", "saliency", "face"]
    group.add_argument("--crop", choices=crops, default="centre", help="around what to crop; default centre")


def add_bucket_command_options(parser: argparse.ArgumentParser) -> None:
    """What only `lorakit data bucket` has."""
    parser.add_argument("--boxes", metavar="FILE", help='JSON lines {"file_name": ..., "crop": [l, t, r, b]}')
    parser.add_argument("--preview", metavar="OUT", help="write every image there as training will see it")


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    """What a segmenter marks."""
    parser.add_argument("--model", required=True, metavar="M", help="folder or hub id of a CLIPSeg or SAM 3")
    parser.add_argument("--prompt", required=True, metavar="WORD", help="what counts, such as dog")
    parser.add_argument("--threshold", type=float, default=0.4, metavar="P", help="likelihood; default 0.4")
    parser.add_argument("--grow", type=float, default=0.01, metavar="S", help="widen, share of the long side")
    parser.add_argument("--again", action="store_true", help="also where it was asked before")
    parser.add_argument("--device", metavar="NAME", help="cuda, cpu, ... (default: cuda when there is one)")


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """What is made of the images, and how."""
    parser.add_argument("--kind", required=True, choices=["canny", "depth", "mask"], help="what to make")
    parser.add_argument("--model", metavar="M", help="depth: folder or hub id of a depth estimator")
    parser.add_argument(
        "--low", type=positive_int, default=100, metavar="G", help="canny: weak edges; default 100"
    )
    parser.add_argument(
        "--high", type=positive_int, default=200, metavar="G", help="canny: strong ones; default 200"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="mask: of random boxes and strokes")
    parser.add_argument("--again", action="store_true", help="also where it was made before")
    parser.add_argument("--device", metavar="NAME", help="cuda, cpu, ... (default: cuda when there is one)")


def parse_control_options(args: argparse.Namespace) -> ControlOptions:
    """The options of `add_control`."""
    from data_tools.conditioning.controls import ControlOptions

    return ControlOptions(args.kind, args.model, args.low, args.high, args.seed, args.device)


def _parse_resolutions(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive_int(part) for part in text.split(",")}))


def parse_bucket_options(args: argparse.Namespace) -> BucketOptions:
    """The options of `add_shapes`."""
    from data_tools.assign_buckets import BucketOptions

    resolution = max(args.tiers, default=args.resolution)
    return BucketOptions(resolution, args.step, args.batch, args.mode, args.tiers, args.upscale, args.crop)


def parse_bucket_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The same, as `PrepareOptions` calls them."""
    from dataclasses import asdict

    return asdict(parse_bucket_options(args))


def parse_captioner_fields(args: argparse.Namespace) -> dict[str, Any]:
    """`captioner` and `describe` of `PrepareOptions`; nothing when no captioner is named."""
    if not (args.model or args.server):
        return {}
    from data_tools.captioners import CaptionerOptions
    from data_tools.captions.generate import CaptioningOptions

    drawn = args.variants > 1 and args.temperature is None  # one prompt, several answers: they must differ
    captioner = CaptionerOptions(
        model=args.model,
        server=args.server,
        key=args.key_env,
        tokens=args.tokens,
        temperature=0.7 if drawn else args.temperature or 0.0,
        at_once=args.at_once,
        timeout=args.timeout,
        threshold=args.threshold,
        character_threshold=args.character_threshold,
        device=args.device,
    )
    which = "overwrite" if args.overwrite else "add" if args.add else "missing"
    asked = CaptioningOptions(tuple(args.prompt), args.variants, which, args.side, args.again)
    # What --overwrite replaces, the model's words replace, not a template.
    return {"captioner": captioner, "describe": asked, "overwrite_captions": False}


def parse_edit_fields(args: argparse.Namespace) -> dict[str, Any]:
    """`edits` and `base` of `PrepareOptions`."""
    given = args.edit
    return {"edits": None if given is None else () if given == ["none"] else tuple(given), "base": args.base}


def parse_segment_options(args: argparse.Namespace) -> SegmentOptions:
    """The options of `add_mask`."""
    from data_tools.conditioning.segment import SegmentOptions

    return SegmentOptions(args.model, args.prompt, args.threshold, args.grow, args.device)
