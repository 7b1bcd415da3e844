"""`lorakit data <command>`: the arguments, and what each command prints and returns.

Registering loads nothing heavy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from data_tools import cli_options
from data_tools.cli_options import positive_int as _positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from data_tools.formats.import_export import TransferResult
    from data_tools.prepare import PrepareOptions, PrepareResult

    Handler = Callable[[argparse.Namespace], int]
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_DATA = 3


def register_data_commands(subparsers: Subparsers) -> None:
    """Add `data` with its commands to the program's own."""
    text = "prepare and check a folder of images"
    data = subparsers.add_parser("data", help=text, description=text)
    commands = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    prepare = _add_command(commands, "prepare", _prepare, "all of it: scan, caption, bucket, check, report")
    for group in (
        _add_decoding_options,
        _add_caption_options,
        cli_options.add_caption_edit_options,
        cli_options.add_captioner_options,
        cli_options.add_bucket_options,
    ):
        group(prepare)
    prepare.add_argument("--no-report", action="store_true", help="write no report.html and report.json")
    scan = _add_command(commands, "scan", _scan, "measure the images and write the manifest")
    _add_decoding_options(scan)
    scan.add_argument("--shard", metavar="I/N", help="only this part, for `merge`: 1/8 to 8/8")
    ray = "by Ray Data: here, or on the cluster at ADDRESS"
    scan.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help=ray)
    _add_decoding_options(
        _add_command(commands, "merge", _merge, "write the manifest from the shards of a scan")
    )
    check = _add_command(
        commands, "check", _check, "find what is wrong; writes nothing, answers with an exit code"
    )
    _add_decoding_options(check)
    _add_caption_options(check)
    cli_options.add_caption_edit_options(check)
    check.add_argument(
        "--fail-on",
        choices=["error", "warning", "never"],
        default="error",
        help="exit with 3 for findings of this level or worse (default: error)",
    )
    check.add_argument("--against", metavar="DIR", help="held-out images: name those that are here too")
    caption = _add_command(commands, "caption", _caption, "pair images with captions in the manifest")
    _add_decoding_options(caption)
    _add_caption_options(caption)
    cli_options.add_caption_edit_options(caption)
    cli_options.add_captioner_options(caption)
    shapes = _add_command(commands, "bucket", _bucket, "choose the training shapes again")
    cli_options.add_bucket_options(shapes)
    cli_options.add_bucket_command_options(shapes)
    cli_options.add_mask_options(
        _add_command(commands, "mask", _mask, "mask what a word names, with a model")
    )
    text = "make edges, depth or masks that a conditioned model learns by"
    cli_options.add_control_options(_add_command(commands, "control", _control, text))
    report = _add_command(commands, "report", _report, "write report.html and report.json again")
    report.add_argument("--trigger", help="the word to mark in captions")
    report.add_argument("--base", metavar="BASE", help="count tokens as this model does")
    text = "fill a folder from zips, tars, parquet files, saved datasets or other folders"
    sources = _add_command(commands, "import", _import, text).add_argument
    sources("sources", nargs="+", metavar="SOURCE", help="what to read; only read, never changed")
    text = "make larger JPEG and PNG pictures smaller, to a shorter side of this; others stay as they are"
    sources("--short-side", type=_positive, metavar="PX", help=text)
    _add_export_options(_add_command(commands, "export", _export, "write the kept images for other tools"))


def _add_command(commands: Subparsers, name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
    example = f"example: lorakit data {name} photos"
    extras = dict.fromkeys(("prepare", "caption"), " --class-noun dog --trigger sks")
    extras |= {
        "mask": " --model CIDAS/clipseg-rd64-refined --prompt dog",
        "import": " shards/*.tar",
        "control": " --kind canny",
    }
    extras |= {"export": " --to kohya --out for-kohya"}
    parser = commands.add_parser(name, help=text, description=text, epilog=example + extras.get(name, ""))
    parser.add_argument("folder", metavar="DIR", help="the folder of images; only read, never changed")
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")
    parser.set_defaults(handler=handler)
    return parser


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    kinds = ["imagefolder", "kohya", "webdataset", "parquet", "zip"]
    parser.add_argument("--to", required=True, choices=kinds, help="the format")
    parser.add_argument("--out", required=True, metavar="PATH", help="a new folder, or the zip file")
    parser.add_argument("--name", metavar="TEXT", help="kohya: what folders are called after their number")
    metadata, text = ["jsonl", "csv", "parquet", "kohya"], "kind of the metadata file (default: jsonl)"
    parser.add_argument("--metadata", choices=metadata, default="jsonl", help=text)
    text = "size of one tar or parquet file (default: 256)"
    parser.add_argument("--shard-mb", type=_positive, default=256, metavar="MB", help=text)


def _add_decoding_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    group.add_argument("--background", default="white", metavar="COLOUR", help="shown through transparency")
    group.add_argument("--first-frame", action="store_true", help="use the first frame of animations")
    group.add_argument("--clips", action="store_true", help="take films too, for bases that make clips")
    group.add_argument("--max-pixels", type=_positive, metavar="N", help="refuse larger pictures")
    group.add_argument("--min-side", type=_positive, default=16, metavar="PX", help="refuse smaller ones")
    group.add_argument("--max-aspect", type=float, default=8.0, metavar="A", help="refuse narrower ones")
    group.add_argument("--workers", type=_positive, metavar="N", help="processes (default: all processors)")
    group.add_argument("--fresh", action="store_true", help="measure everything again")
    group.add_argument("--alpha-mask", action="store_true", help="take transparency as a mask")


def _add_caption_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("captions")
    group.add_argument("--class-noun", metavar="NOUN", help="what the images show, such as dog")
    group.add_argument("--trigger", metavar="WORD", help="the word to learn, such as sks")
    group.add_argument("--folder-names", action="store_true", help="caption by the folder's name")
    group.add_argument("--overwrite", action="store_true", help="replace captions found (files stay as is)")
    group.add_argument("--allow-missing", action="store_true", help="accept images without a caption")
    group.add_argument("--caption-encoding", default="utf-8", metavar="NAME", help="of caption files")
    group.add_argument("--caption-suffix", metavar=".txt", help="read only caption files of this kind")


# ---- commands ----------------------------------------------------------------------------------------------


def _prepare(args: argparse.Namespace) -> int:
    from data_tools.prepare import prepare_dataset

    code = _print_result(args, prepare_dataset(args.folder, _prepare_options(args)))
    if not args.no_report:
        _print_report_path(args)
    return code


def _scan(args: argparse.Namespace) -> int:
    from data_tools.prepare import scan_dataset, scan_dataset_shard

    if args.shard:
        return _print_result(args, scan_dataset_shard(args.folder, _prepare_options(args), args.shard))
    return _print_result(args, scan_dataset(args.folder, _prepare_options(args), ray=args.ray))


def _merge(args: argparse.Namespace) -> int:
    from data_tools.prepare import merge_scan_shards

    return _print_result(args, merge_scan_shards(args.folder, _prepare_options(args)))


def _import(args: argparse.Namespace) -> int:
    from data_tools.formats.import_export import import_dataset

    return _print_transfer(
        args, import_dataset(args.folder, args.sources, short_side=args.short_side, quiet=args.quiet)
    )


def _export(args: argparse.Namespace) -> int:
    from data_tools.formats.import_export import export_dataset

    done = export_dataset(
        args.folder,
        args.to,
        args.out,
        name=args.name,
        metadata=args.metadata,
        shard_bytes=args.shard_mb << 20,
        quiet=args.quiet,
    )
    return _print_transfer(args, done)


def _print_transfer(args: argparse.Namespace, done: TransferResult) -> int:
    if args.json:
        print(json.dumps(done.to_json(), ensure_ascii=False, indent=2))
    elif not args.quiet:
        print(done.summary())
    return 0


def _caption(args: argparse.Namespace) -> int:
    from data_tools.prepare import caption_dataset

    return _print_result(args, caption_dataset(args.folder, _prepare_options(args)))


def _bucket(args: argparse.Namespace) -> int:
    from data_tools import crop_preview
    from data_tools.prepare import bucket_dataset

    options = cli_options.parse_bucket_options(args)
    if args.preview:
        crop_preview.check_preview_folder(args.folder, args.preview)
    result = bucket_dataset(args.folder, options, boxes=args.boxes, quiet=args.quiet)
    if args.preview:
        crop_preview.write_previews(result.folder, result.records, args.preview, quiet=args.quiet)
    if not (args.quiet or args.json):
        from data_tools import bucket_costs

        print(bucket_costs.format_cost_table(result.records, options))
    return _print_result(args, result)


def _mask(args: argparse.Namespace) -> int:
    from data_tools.prepare import mask_dataset

    options = cli_options.parse_segment_options(args)
    return _print_result(args, mask_dataset(args.folder, options, again=args.again, quiet=args.quiet))


def _control(args: argparse.Namespace) -> int:
    from data_tools.prepare import generate_dataset_controls

    options = cli_options.parse_control_options(args)
    return _print_result(
        args, generate_dataset_controls(args.folder, options, again=args.again, quiet=args.quiet)
    )


def _check(args: argparse.Namespace) -> int:
    from data_tools import findings
    from data_tools.prepare import check_dataset_folder

    result = check_dataset_folder(args.folder, _prepare_options(args), against=args.against)
    if args.json:
        value = {"counts": result.counts(), "findings": [finding.to_json() for finding in result.findings]}
        print(json.dumps(value, ensure_ascii=False, indent=2))
    elif not args.quiet:
        for finding in result.findings:
            print(finding)
        levels = findings.count_by_level(result.findings).items()
        counts = ", ".join(findings.pluralize(number, level) for level, number in levels)
        print(f"{args.folder}: {findings.pluralize(len(result.records), 'image')}; {counts}")
    return EXIT_DATA if findings.any_at_level(result.findings, args.fail_on) else 0


def _report(args: argparse.Namespace) -> int:
    from data_tools.prepare import rebuild_dataset_report

    _print_result(
        args, rebuild_dataset_report(args.folder, trigger=args.trigger, base=args.base, quiet=args.quiet)
    )
    _print_report_path(args)
    return 0


def _print_report_path(args: argparse.Namespace) -> None:
    from data_tools import report

    if not (args.quiet or args.json):
        print(f"  report     {os.path.join(args.folder, report.HTML_FILE)}")


def _print_result(args: argparse.Namespace, result: PrepareResult) -> int:
    """Print what came of it; EXIT_DATA when a model left images without a caption."""
    if args.json:
        print(json.dumps({"folder": str(result.folder), **result.counts()}, ensure_ascii=False, indent=2))
    elif not args.quiet:
        print(result.summary())
        sys.stdout.flush()
    asked = bool(getattr(args, "server", None) or getattr(args, "model", None))
    silent = any(finding.code == "no_caption" for finding in result.findings)
    return EXIT_DATA if asked and silent and not getattr(args, "allow_missing", True) else 0


def _prepare_options(args: argparse.Namespace) -> PrepareOptions:
    """The options given, by the names that the command has."""
    from data_tools.prepare import PrepareOptions
    from lorakit.imaging import decode

    given: dict[str, Any] = {
        "background": decode.parse_color(args.background),
        "first_frame": args.first_frame,
        "max_pixels": args.max_pixels or decode.MAX_PIXELS,
        "min_side": args.min_side,
        "max_aspect": args.max_aspect,
        "workers": args.workers,
        "fresh": args.fresh,
        "quiet": args.quiet,
        "report": not getattr(args, "no_report", False),
        "alpha_mask": args.alpha_mask,
        "clips": args.clips,
    }
    if hasattr(args, "class_noun"):
        given |= {
            "class_noun": args.class_noun,
            "trigger": args.trigger,
            "folder_names": args.folder_names,
            "overwrite_captions": args.overwrite,
            "allow_missing_captions": args.allow_missing,
            "caption_encoding": args.caption_encoding,
            "caption_suffix": args.caption_suffix,
            **cli_options.parse_edit_fields(args),
        }
    if hasattr(args, "server"):
        given |= cli_options.parse_captioner_fields(args)
    if hasattr(args, "resolution"):
        given |= cli_options.parse_bucket_fields(args)
    return PrepareOptions(**given)
