"""`lorakit data <command>`: the arguments, and what each command prints and returns.

Registering loads nothing heavy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_tools.bucket import BucketOptions
    from data_tools.prepare import PrepareOptions, PrepareResult

    Handler = Callable[[argparse.Namespace], int]
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_DATA = 3


def register(subparsers: Subparsers) -> None:
    """Add `data` with its commands to the program's own."""
    text = "prepare and check a folder of images"
    data = subparsers.add_parser("data", help=text, description=text)
    commands = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    prepare = _add(commands, "prepare", _prepare, "all of it: scan, caption, bucket, check, report")
    for group in (_decoding, _captions, _shapes):
        group(prepare)
    prepare.add_argument("--no-report", action="store_true", help="write no report.html and report.json")
    _decoding(_add(commands, "scan", _scan, "measure the images and write the manifest"))
    check = _add(commands, "check", _check, "find what is wrong; writes nothing, answers with an exit code")
    _decoding(check)
    _captions(check)
    check.add_argument(
        "--fail-on",
        choices=["error", "warning", "never"],
        default="error",
        help="exit with 3 for findings of this level or worse (default: error)",
    )
    caption = _add(commands, "caption", _caption, "pair images with captions in the manifest")
    _decoding(caption)
    _captions(caption)
    _shapes(_add(commands, "bucket", _bucket, "choose the training shapes again"))
    report = _add(commands, "report", _report, "write report.html and report.json again")
    report.add_argument("--trigger", help="the word to mark in captions")


def _add(commands: Subparsers, name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
    example = f"example: lorakit data {name} photos"
    extra = " --class-noun dog --trigger sks" if name in ("prepare", "caption") else ""
    parser = commands.add_parser(name, help=text, description=text, epilog=example + extra)
    parser.add_argument("folder", metavar="DIR", help="the folder of images; only read, never changed")
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    parser.set_defaults(handler=handler)
    return parser


def _decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument("--background", default="white", metavar="COLOUR", help="shown through transparency")
    group.add_argument("--first-frame", action="store_true", help="use the first frame of animations")
    group.add_argument("--max-pixels", type=_positive, metavar="N", help="refuse larger pictures")
    group.add_argument("--min-side", type=_positive, default=16, metavar="PX", help="refuse smaller ones")
    group.add_argument("--max-aspect", type=float, default=8.0, metavar="A", help="refuse narrower ones")
    group.add_argument("--workers", type=_positive, metavar="N", help="processes (default: all processors)")
    group.add_argument("--fresh", action="store_true", help="measure everything again")


def _captions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("captions")
    group.add_argument("--class-noun", metavar="NOUN", help="what the images show, such as dog")
    group.add_argument("--trigger", metavar="WORD", help="the word to learn, such as sks")
    group.add_argument("--folder-names", action="store_true", help="caption by the folder's name")
    group.add_argument("--overwrite", action="store_true", help="replace captions found (files stay as is)")
    group.add_argument("--allow-missing", action="store_true", help="accept images without a caption")
    group.add_argument("--caption-encoding", default="utf-8", metavar="NAME", help="of caption files")


def _shapes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shapes")
    group.add_argument("--resolution", type=_positive, default=1024, metavar="PX", help="default 1024")
    group.add_argument("--step", type=_positive, default=16, metavar="PX", help="sides are multiples of it")
    group.add_argument("--mode", choices=["auto", "native", "square"], default="auto", help="default auto")
    group.add_argument("--batch", type=_positive, default=1, metavar="N", help="batch size to fill")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


# ---- commands ----------------------------------------------------------------------------------------------


def _prepare(args: argparse.Namespace) -> int:
    from data_tools.prepare import prepare

    _answer(args, prepare(args.folder, _options(args)))
    return 0


def _scan(args: argparse.Namespace) -> int:
    from data_tools.prepare import scan_only

    _answer(args, scan_only(args.folder, _options(args)))
    return 0


def _caption(args: argparse.Namespace) -> int:
    from data_tools.prepare import caption_only

    _answer(args, caption_only(args.folder, _options(args)))
    return 0


def _bucket(args: argparse.Namespace) -> int:
    from data_tools.prepare import bucket_only

    _answer(args, bucket_only(args.folder, _bucket_options(args)))
    return 0


def _check(args: argparse.Namespace) -> int:
    from data_tools import findings
    from data_tools.prepare import check_only

    result = check_only(args.folder, _options(args))
    if args.json:
        value = {"counts": result.counts(), "findings": [finding.to_json() for finding in result.findings]}
        print(json.dumps(value, ensure_ascii=False, indent=2))
    elif not args.quiet:
        for finding in result.findings:
            print(finding)
        counts = ", ".join(f"{number} {level}s" for level, number in findings.count(result.findings).items())
        print(f"{args.folder}: {len(result.records)} images; {counts}")
    return EXIT_DATA if findings.reaches(result.findings, args.fail_on) else 0


def _report(args: argparse.Namespace) -> int:
    from data_tools import report
    from data_tools.prepare import report_only

    result = report_only(args.folder, trigger=args.trigger, quiet=args.quiet)
    _answer(args, result)
    if not (args.quiet or args.json):
        print(f"  report     {result.folder / report.HTML}")
    return 0


def _answer(args: argparse.Namespace, result: PrepareResult) -> None:
    if args.json:
        print(json.dumps({"folder": str(result.folder), **result.counts()}, ensure_ascii=False, indent=2))
    elif not args.quiet:
        print(result.summary())
        sys.stdout.flush()


def _options(args: argparse.Namespace) -> PrepareOptions:
    """The options given, by the names that the command has."""
    from data_tools.prepare import PrepareOptions
    from lorakit import images

    given: dict[str, Any] = {
        "background": images.parse_color(args.background),
        "first_frame": args.first_frame,
        "max_pixels": args.max_pixels or images.MAX_PIXELS,
        "min_side": args.min_side,
        "max_aspect": args.max_aspect,
        "workers": args.workers,
        "fresh": args.fresh,
        "quiet": args.quiet,
        "report": not getattr(args, "no_report", False),
    }
    if hasattr(args, "class_noun"):
        given |= {
            "class_noun": args.class_noun,
            "trigger": args.trigger,
            "folder_names": args.folder_names,
            "overwrite_captions": args.overwrite,
            "allow_missing_captions": args.allow_missing,
            "caption_encoding": args.caption_encoding,
        }
    if hasattr(args, "resolution"):
        shape = _bucket_options(args)
        given |= {
            "resolution": shape.resolution,
            "step": shape.step,
            "mode": shape.mode,
            "batch": shape.batch,
        }
    return PrepareOptions(**given)


def _bucket_options(args: argparse.Namespace) -> BucketOptions:
    from data_tools.bucket import BucketOptions

    return BucketOptions(args.resolution, args.step, args.batch, args.mode)
