"""The `lorakit data` commands: each parses its options, calls one function and prints the result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_tools import cli_options
from data_tools.cli_options import Values, parse_prepare_options, pick_fields
from lorakit.core.command_line import (
    FILE,
    FOLDER,
    POSITIVE,
    Group,
    LazyCommand,
    command,
    is_quiet,
    option,
    print_answer,
    print_summary,
)

if TYPE_CHECKING:
    from data_tools.assign_buckets import BucketOptions
    from data_tools.dataset import Dataset
    from data_tools.formats.transfer_result import TransferResult

EXIT_DATA = 3
COMMANDS = {
    name: LazyCommand(f"data_tools.cli:{name}_command", text, section)
    for name, text, section in (
        ("prepare", "Do all steps: scan, caption, bucket, check and report.", "All steps"),
        ("scan", "Measure the images and write the manifest.", "Single steps"),
        ("merge", "Write the manifest from the shards of a scan.", "Single steps"),
        ("caption", "Give each image a caption in the manifest.", "Single steps"),
        ("bucket", "Choose buckets and crops again.", "Single steps"),
        ("check", "Find problems without writing anything.", "Single steps"),
        ("report", "Write report.html and report.json again.", "Single steps"),
        ("mask", "Make masks of objects that a word names, with a segmentation model.", "Additional images"),
        ("control", "Make conditioning images: edges, depth maps, poses, masks.", "Additional images"),
        ("unlink", "Take generated controls, masks and captions out again.", "Additional images"),
        ("import", "Fill a folder from archives, tables or other folders.", "Formats"),
        ("export", "Write the images and captions for other tools.", "Formats"),
    )
}


@click.group("data", cls=Group, lazy=COMMANDS)
def data_group() -> None:
    """Prepare and check a folder of images for training. Images are only read, never changed."""


_folder = click.argument("folder", type=FOLDER, metavar="DIR", required=True, help="Folder of images.")


@command(
    "prepare",
    _folder,
    cli_options.decoding_options,
    cli_options.caption_options,
    cli_options.caption_edit_options,
    cli_options.captioner_options,
    cli_options.bucket_options,
    option("--no-report", is_flag=True, help="Do not write report.html and report.json."),
    cli_options.out_option(),
    example="lorakit data prepare photos --class-noun dog --trigger sks --resolution 1024",
)
def prepare_command(folder: Path, no_report: bool, **values: Any) -> int:
    """Do all steps: scan, caption, bucket, check and report.

    Writes manifest.jsonl, metadata.jsonl, report.html and report.json to the folder. Can be repeated at any
    time: only new and changed images are measured again.
    """
    from data_tools.prepare import prepare_dataset

    options = parse_prepare_options(values | {"report": not no_report}, quiet=is_quiet())
    code = _print_result(prepare_dataset(folder, options), values)
    if not no_report:
        _print_report_path(folder)
    return code


@command(
    "scan",
    _folder,
    cli_options.decoding_options,
    option("--shard", metavar="I/N", help="Scan one part only, such as 1/8; `lorakit data merge` joins all."),
    cli_options.ray_option("Scan with Ray Data"),
    cli_options.out_option(),
    example="lorakit data scan photos",
)  # fmt: skip
def scan_command(folder: Path, shard: str | None, ray: str | None, **values: Any) -> int:
    """Measure the images and write the manifest."""
    from data_tools.prepare import scan_dataset, scan_dataset_shard

    options = parse_prepare_options(values, quiet=is_quiet())
    if shard:
        return _print_result(scan_dataset_shard(folder, options, shard))
    return _print_result(scan_dataset(folder, options, ray_address=ray))


@command(
    "merge",
    _folder,
    cli_options.decoding_options,
    cli_options.out_option(),
    example="lorakit data merge photos",
)
def merge_command(folder: Path, **values: Any) -> int:
    """Write the manifest from the shards of a scan."""
    from data_tools.prepare import merge_scan_shards

    return _print_result(merge_scan_shards(folder, parse_prepare_options(values, quiet=is_quiet())))


@command(
    "caption",
    _folder,
    cli_options.decoding_options,
    cli_options.caption_options,
    cli_options.caption_edit_options,
    cli_options.captioner_options,
    option("--shard", metavar="I/N",
           help="Caption one part only, such as 1/8; the command without --shard joins all and writes the "
           "manifest."),
    cli_options.ray_option("Run the model on every GPU with Ray Data"),
    cli_options.out_option(),
    example=[
        "lorakit data caption photos --class-noun dog --trigger sks",
        "lorakit data caption photos --server http://127.0.0.1:8000/v1",
    ],
)  # fmt: skip
def caption_command(folder: Path, shard: str | None, ray: str | None, **values: Any) -> int:
    """Give each image a caption in the manifest.

    Captions come from caption files, metadata files, a model, or the template "a photo of TRIGGER NOUN".
    """
    from data_tools.prepare import caption_dataset, caption_dataset_shard

    options = parse_prepare_options(values, quiet=is_quiet())
    if shard and ray:
        raise click.UsageError("--shard and --ray both divide the work: leave one of them out")
    if shard:
        return _print_result(caption_dataset_shard(folder, options, shard))
    return _print_result(caption_dataset(folder, options, ray_address=ray), values)


@command(
    "bucket",
    _folder,
    cli_options.bucket_options,
    cli_options.crop_file_options,
    cli_options.out_option(),
    example="lorakit data bucket photos --resolution 768 --preview preview",
)
def bucket_command(folder: Path, crops_file: Path | None, preview: Path | None, **values: Any) -> int:
    """Choose buckets and crops again.

    Also prints what each bucket mode would cost: image area that is cropped, and batches that are not full.
    """
    from data_tools import crop_preview
    from data_tools.prepare import bucket_dataset

    options = cli_options.parse_bucket_options(values)
    if preview:
        crop_preview.check_preview_folder(folder, preview)
    result = bucket_dataset(folder, options, crops_file=crops_file, quiet=is_quiet())
    if preview:
        crop_preview.write_previews(result.folder, result.records, preview, quiet=is_quiet())
    print_summary(lambda: _print_bucket_costs(result, options))
    return _print_result(result)


def _print_bucket_costs(result: Dataset, options: BucketOptions) -> None:
    """Print a table of the bucket modes with the chosen one marked."""
    from data_tools import bucket_costs
    from lorakit.core.tables import print_table

    costs = bucket_costs.compare_bucket_modes(result.records, options)
    rows = [
        [">" if cost.bucket_mode == options.bucket_mode else "", *bucket_costs.cost_cells(cost)]
        for cost in costs
    ]
    print(f"batch size {options.batch_size}, resolution {options.resolution}")
    print_table(("", *bucket_costs.COST_HEADERS), rows, numeric=bucket_costs.COST_HEADERS[1:])


@command(
    "check",
    _folder,
    cli_options.decoding_options,
    cli_options.caption_options,
    cli_options.caption_edit_options,
    option("--resolution", type=POSITIVE, default=1024, metavar="PX",
           help="Resolution of the training, for a folder that is not prepared yet."),
    option("--fail-on", type=click.Choice(["error", "warning", "never"]), default="error",
           help="Exit with code 3 for findings of this level or worse."),
    option("--held-out", type=FOLDER, metavar="DIR",
           help="Report images that are also in this folder of held-out images."),
    cli_options.out_option(create=False),
    example="lorakit data check photos --fail-on warning",
)  # fmt: skip
def check_command(folder: Path, fail_on: str, held_out: Path | None, **values: Any) -> int:
    """Find problems without writing anything: damaged files, duplicates, sizes, names and captions."""
    from data_tools import findings
    from data_tools.prepare import check_dataset_folder

    options = parse_prepare_options(values, quiet=is_quiet())
    result = check_dataset_folder(folder, options, held_out=held_out)

    def summary() -> str | None:
        if is_quiet():
            return None
        counts = [
            findings.pluralize(number, level)
            for level, number in findings.count_by_level(result.findings).items()
        ]
        images = findings.pluralize(len(result.records), "image")
        return "\n".join([*map(str, result.findings), f"{folder}: {images}; {', '.join(counts)}"])

    rows = [finding.to_json() for finding in result.findings]
    print_answer({"counts": result.counts(), "findings": rows}, summary)
    return EXIT_DATA if findings.any_at_level(result.findings, fail_on) else 0


@command(
    "report",
    _folder,
    option("--trigger", metavar="WORD", help="Word to highlight in captions."),
    option("--base", metavar="BASE", help="Count the tokens of captions with this base model's tokenizers."),
    cli_options.out_option(),
    example="lorakit data report photos",
)
def report_command(folder: Path, trigger: str | None, base: str | None) -> None:
    """Write report.html and report.json again."""
    from data_tools.prepare import rebuild_dataset_report

    _print_result(rebuild_dataset_report(folder, trigger=trigger, base=base, quiet=is_quiet()))
    _print_report_path(folder)


@command(
    "mask",
    _folder,
    cli_options.mask_options,
    cli_options.out_option(),
    example="lorakit data mask photos --model CIDAS/clipseg-rd64-refined --prompt dog",
)
def mask_command(folder: Path, regenerate: bool, **values: Any) -> int:
    """Make masks of objects that a word names, with a segmentation model.

    Images that come with their own mask keep it.
    """
    from data_tools.conditioning.segment import SegmentOptions
    from data_tools.prepare import mask_dataset

    options = pick_fields(SegmentOptions, values)
    return _print_result(mask_dataset(folder, options, regenerate=regenerate, quiet=is_quiet()))


@command(
    "control",
    _folder,
    cli_options.control_options,
    cli_options.out_option(),
    example="lorakit data control photos --type canny",
)
def control_command(folder: Path, regenerate: bool, **values: Any) -> int:
    """Make conditioning images: edges, depth maps, poses, masks.

    They have the size that the images are trained at, so prepare these first. Images that come with their own
    conditioning image keep it.
    """
    from data_tools.conditioning.controls import ControlOptions
    from data_tools.prepare import generate_dataset_controls

    options = pick_fields(ControlOptions, values)
    return _print_result(generate_dataset_controls(folder, options, regenerate=regenerate, quiet=is_quiet()))


@command(
    "unlink",
    _folder,
    option("--controls", is_flag=True, help="Take out generated controls."),
    option("--masks", is_flag=True, help="Take out generated masks."),
    option("--captions", is_flag=True, help="Take out captions of models."),
    option("--yes", is_flag=True, help="Do it; without this option, only print what would be done."),
    cli_options.out_option(create=False),
    example="lorakit data unlink photos --controls --masks --yes",
)
def unlink_command(folder: Path, yes: bool, **values: Any) -> None:
    """Take generated controls, masks and captions out again.

    Deletes only files that lorakit generated and that have not changed since. Your own masks, controls and
    captions stay; `lorakit data prepare` then does as if nothing had been generated.
    """
    from data_tools.unlink import UnlinkOptions, unlink_generated

    result = unlink_generated(folder, pick_fields(UnlinkOptions, values), apply=yes)
    print_answer(result.to_json(), None if is_quiet() else result.summary())


@command(
    "import",
    click.argument("folder", type=FOLDER, metavar="DIR", required=True,
                   help="Folder to fill; its files are not changed."),
    click.argument("sources", nargs=-1, required=True, type=FILE, metavar="SOURCE...",
                   help="Zip, tar, parquet and arrow files, saved Hugging Face datasets, snapshots of its "
                   "hub, or other folders. They are only read."),
    cli_options.import_options,
    example=[
        "lorakit data import photos shards/*.tar",
        "lorakit data import edits edits.parquet --target-column after --image-column before",
    ],
)  # fmt: skip
def import_command(folder: Path, sources: tuple[Path, ...], **values: Any) -> None:
    """Fill a folder from archives, tables or other folders.

    Names every column, file and row that is left out, with the reason.
    """
    from data_tools.formats.column_roles import ColumnChoice
    from data_tools.formats.import_export import import_dataset

    choice = pick_fields(ColumnChoice, values)
    others = {name: values[name] for name in ("short_side", "splits", "follow_links")}
    _print_transfer(import_dataset(folder, sources, choice=choice, quiet=is_quiet(), **others))


@command(
    "export",
    click.argument("folder", type=FOLDER, metavar="DIR", required=True,
                   help="Prepared folder of images, which is only read."),
    cli_options.export_options,
    example="lorakit data export photos --to kohya --out for-kohya",
)  # fmt: skip
def export_command(folder: Path, format: str, out: Path, shard_size_mb: int, **values: Any) -> None:
    """Write the images and captions for other tools.

    Names the images that are excluded, and everything that the format cannot carry.
    """
    from data_tools.formats.import_export import export_dataset

    result = export_dataset(folder, format, out, shard_bytes=shard_size_mb << 20, quiet=is_quiet(), **values)
    _print_transfer(result)


def _print_transfer(result: TransferResult) -> None:
    print_answer(result.to_json(), None if is_quiet() else result.summary())


def _print_report_path(folder: Path) -> None:
    from data_tools import report

    print_summary(f"  report     {os.path.join(folder, report.HTML_FILE)}")


def _print_result(result: Dataset, values: Values | None = None) -> int:
    """Print the result; return EXIT_DATA if a model was asked and left images without a caption."""
    warnings = [finding.to_json() for finding in result.findings if finding.level != "note"]
    answer = {"folder": str(result.folder), **result.counts(), "warnings": warnings}
    print_answer(answer, None if is_quiet() else result.summary())
    if not values or values["allow_missing_captions"] or not (values.get("model") or values.get("server")):
        return 0
    return EXIT_DATA if any(finding.code == "no_caption" for finding in result.findings) else 0
