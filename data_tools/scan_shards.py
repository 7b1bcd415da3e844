"""One scan on several machines that share the folder: each measures one shard, `merge` joins the shards.

A shard is an append-only file of records, `.lorakit-shard-2-of-8.jsonl`, from which a stopped scan continues.
Nothing else is needed; with an existing cluster, Ray Data does the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools import scan
from data_tools.listing import Listing
from data_tools.scan import ScanJob, ScanOptions
from lorakit import manifest
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.core.progress import Progress
from lorakit.core.ray_data import LOCAL, ray_session
from lorakit.core.shards import Shard
from lorakit.manifest import Record

_NAME = re.compile(r"\.lorakit-shard-(\d+)-of-(\d+)\.jsonl")


def shard_file(shard: Shard) -> str:
    """Return the name of a shard's file in the dataset folder."""
    return f".lorakit-shard-{shard.number}-of-{shard.count}.jsonl"


def scan_shard(listing: Listing, options: ScanOptions, shard: Shard) -> list[Record]:
    """Measure one shard into its file, and return its records; images in that file are not read again."""
    path = listing.folder / shard_file(shard)
    if options.rescan:
        storage.remove_file(path)
    done = scan.read_scan_journal(path)
    previous = {} if options.rescan else listing.earlier.records
    files = [file for file in shard.part(listing.images) if file not in done]
    for record in scan.scan_files(listing, files, options, previous):
        storage.append_jsonl(path, manifest.record_to_json(record))
        done[record.file] = record
    return [done[file] for file in shard.part(listing.images)]


def join_scan_shards(listing: Listing) -> list[Record]:
    """Return the records of all shards in the listing's order; an unfinished shard is a `DataError`."""
    names = sorted(path.name for path in listing.folder.iterdir() if _NAME.fullmatch(path.name))
    if not names:
        remedy = f"first run `lorakit data scan {listing.folder} --shard 1/8`, 2/8, ... on as many machines"
        raise DataError("there are no shards to merge", where=str(listing.folder), remedy=remedy)
    counts = {int(match[2]) for name in names if (match := _NAME.fullmatch(name))}
    if len(counts) > 1:
        remedy = "delete the .lorakit-shard files that do not belong to this scan"
        raise DataError(
            f"shards of different scans: {', '.join(names)}", where=str(listing.folder), remedy=remedy
        )
    count = counts.pop()
    records: dict[str, Record] = {}
    for name in names:
        records |= scan.read_scan_journal(listing.folder / name)
    for number in range(1, count + 1):
        shard = Shard(number, count)
        missing = [file for file in shard.part(listing.images) if file not in records]
        if missing:
            message = f"shard {number}/{count} lacks {len(missing)} images, for example {missing[0]!r}"
            remedy = f"run `lorakit data scan {listing.folder} --shard {number}/{count}`"
            raise DataError(message, where=str(listing.folder / shard_file(shard)), remedy=remedy)
    return scan.reject_name_collisions(listing, [records[file] for file in listing.images])


def remove_scan_shards(folder: Path) -> None:
    """Remove the shards' files, after the manifest was written."""
    for path in list(folder.iterdir()):
        if _NAME.fullmatch(path.name):
            storage.remove_file(path)


def scan_with_ray(listing: Listing, options: ScanOptions, address: str = LOCAL) -> list[Record]:
    """Scan with Ray Data: on the cluster at `address`, which must have the folder, or on this machine."""
    records = {} if options.rescan else listing.earlier.records
    root = str(listing.root.resolve())

    def measure(row: dict[str, Any]) -> dict[str, Any]:
        line = row["previous"].encode("utf-8")
        job = ScanJob(row["file"], manifest.parse_record(line, root) if line else None)
        return {"line": manifest.manifest_bytes([scan.scan_file(root, options, job)]).decode("utf-8")}

    def rows() -> Iterator[dict[str, str]]:
        for file in listing.images:
            previous = manifest.manifest_bytes([records[file]]).decode("utf-8") if file in records else ""
            yield {"file": file, "previous": previous}

    scanned: dict[str, Record] = {}
    with (
        ray_session(address) as ray,
        Progress("images", len(listing.images), quiet=options.quiet) as progress,
    ):
        data = ray.data.from_items(list(rows())).map(measure)
        for number, row in enumerate(data.iter_rows(), 1):
            record = manifest.parse_record(row["line"].encode("utf-8"), root)
            scanned[record.file] = record
            progress.update(number)
    return scan.reject_name_collisions(listing, [scanned[file] for file in listing.images])
