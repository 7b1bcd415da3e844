"""`lorakit publish`: the folder of a published run, and its upload when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorakit.core.command_line import FILE, FOLDER, command, option, print_answer

if TYPE_CHECKING:
    from lorakit.adapters.publishing.hub_upload import Upload
    from lorakit.adapters.publishing.publication import Publication


@command(
    "publish",
    click.argument("run", type=FILE, metavar="RUN",
                   help="A run or RUN@STEP, with an optional :STRENGTH. A run is its selected checkpoint."),
    option("--to", "repository", metavar="OWNER/NAME",
           help="Repository of the model hub to upload to; without it the folder is only written."),
    option("--dry-run", is_flag=True, help="Only write the folder, also with --to."),
    option("--public", is_flag=True, help="Create a public repository; by default it is private."),
    option("--replace", "replace_files", is_flag=True,
           help="Overwrite files of the repository that lorakit did not upload."),
    option("--out", type=FOLDER, metavar="DIR", help="The folder; by default `publish` in the run."),
    option("--for", "consumer", type=click.Choice(["comfyui", "a1111", "diffusers", "all"]), default="all",
           help="Program that will load the adapter files."),
    option("--license", "license_id", metavar="ID",
           help="License of the adapter as the hub names it, such as apache-2.0."),
    option("--title", metavar="TEXT", help="Title of the model card; by default the repository's name."),
    option("--base", metavar="DIR", help="Base model folder; needed to convert DoRA and OFT."),
    example=["lorakit publish runs/dog", "lorakit publish runs/dog --to me/dog-lora --license openrail++"],
)  # fmt: skip
def publish_command(
    run: Path,
    repository: str | None,
    dry_run: bool,
    public: bool,
    replace_files: bool,
    out: Path | None,
    consumer: str,
    license_id: str | None,
    title: str | None,
    base: str | None,
) -> None:
    """Write a run as a folder for the model hub, and upload it with --to.

    The folder has a model card, a grid of samples, a thumbnail, the adapter for each program and the numbers
    of the evaluation; no images, captions and names of the training data. Look at it before you upload it:
    files that you add are uploaded, too, and a card that you edit stays.
    """
    from lorakit.adapters.publishing import hub_upload, publication
    from lorakit.adapters.sources import parse_adapter_source
    from lorakit.cli.adapters import find_export_base

    source = parse_adapter_source(str(run)).print_line()
    folder = out or publication.publish_folder(source)
    options = publication.PublishOptions(repository, license_id, title, consumer)
    built = publication.build_publication(source, folder, options, find_export_base(source.run, base))
    if repository is None or dry_run:
        answer = built.to_json() | {"upload": None}
        print_answer(answer, _summary(built) + "\nnothing was uploaded" + _next_step(run, repository))
        return
    uploaded = hub_upload.upload_publication(built, repository, public=public, replace_files=replace_files)
    answer = built.to_json() | {"upload": uploaded.to_json()}
    print_answer(answer, f"{_summary(built)}\n{_upload_text(uploaded)}")


def _summary(built: Publication) -> str:
    lines = [f"{built.folder}  {len(built.files)} files, {built.num_bytes / 1e6:.1f} MB"]
    lines += [f"  {name}" for name in built.files]
    if not built.is_evaluated:
        lines.append("the run has no current evaluation, and the card says so (`lorakit eval run` makes one)")
    return "\n".join(lines)


def _next_step(run: Path, repository: str | None) -> str:
    return "" if repository else f"; upload it with `lorakit publish {run} --to OWNER/NAME`"


def _upload_text(uploaded: Upload) -> str:
    if not uploaded.commit:
        return f"{uploaded.url} has these files already"
    visibility = "private" if uploaded.is_private else "public"
    removed = f", {len(uploaded.removed)} removed" if uploaded.removed else ""
    return f"{uploaded.url}  ({visibility}), {len(uploaded.uploaded)} files uploaded{removed}"
