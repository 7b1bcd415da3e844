"""The first sections of the report: a summary line, the findings with images, and the duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_tools.findings import Finding
from data_tools.report.data import ReportData
from data_tools.report.thumbnails import CARD_SIDE, FINDING_SIDE, FileName, Thumbnail, Thumbnails
from lorakit.reports import Badge, Level

_MAX_IMAGES, _MAX_FILES = 5, 6  # beside a finding
_MAX_CLUSTERS = 40
_MAX_CLUSTER_IMAGES = 8
_DUPLICATE_CODES = ("duplicate", "near_duplicate")
_LEAK_CODE = "split_leak"  # a cluster across train and validation
LEVELS: dict[str, Level | None] = {"error": "bad", "warning": "warn", "note": None}
"""The color of a finding's level."""


@dataclass(frozen=True)
class Summary:
    """The first line of the report."""

    text: str
    level: Level
    next_step: str = ""


@dataclass(frozen=True)
class FindingRow:
    """One finding with its files: the first ones, and the rest behind a click."""

    badge: Badge
    code: str
    message: str
    first_files: Sequence[FileName] = ()
    more_files: Sequence[FileName] = ()
    images: Sequence[tuple[FileName, Thumbnail]] = ()


@dataclass(frozen=True)
class FindingRows:
    """Findings that need an action, and notes."""

    alerts: list[FindingRow] = field(default_factory=list)
    notes: list[FindingRow] = field(default_factory=list)


@dataclass(frozen=True)
class ClusterImage:
    """An image of a cluster with its size."""

    name: FileName
    thumbnail: Thumbnail
    size: str


@dataclass(frozen=True)
class Cluster:
    """Duplicates side by side; `leak` says that they are in train and validation."""

    title: str
    leak: str | None
    images: Sequence[ClusterImage]
    num_more: int


def summarize(data: ReportData) -> Summary:
    """Return the first line: ready to train, or not."""
    errors = [finding for finding in data.findings if finding.level == "error"]
    warnings = [finding for finding in data.findings if finding.level == "warning"]
    files = len({file for finding in errors for file in finding.files})
    if files and files == sum(not record.keep for record in data.records):
        rest = f"the other {len(data.kept)} are ready"
        return Summary(f"{_files(files)} cannot be used and {_is(files)} excluded; {rest}.", "warn")
    if errors:
        return Summary(f"{_files(files)} cannot be used yet. See the findings below.", "bad")
    if warnings:
        number = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        return Summary(f"Ready to train, with {number}.", "warn")
    return Summary("Ready to train. No problems found.", "good")


def finding_rows(data: ReportData, thumbnails: Thumbnails) -> FindingRows:
    """Return one row for each finding, worst first; groups of duplicates, shown below, share a row."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    rows = FindingRows()
    for finding in data.findings:
        if finding.code in (*_DUPLICATE_CODES, _LEAK_CODE):
            groups[finding.level, finding.code].append(finding)
        else:
            _list_of(rows, finding.level).append(_row(finding, thumbnails))
    for (level, code), group in groups.items():
        message = (
            f"{len(group)} groups, shown below" if len(group) > 1 else f"{group[0].message}, shown below"
        )
        _list_of(rows, level).append(FindingRow(Badge(level, LEVELS[level]), code, message))
    return rows


def _list_of(rows: FindingRows, level: str) -> list[FindingRow]:
    return rows.notes if level == "note" else rows.alerts


def _row(finding: Finding, thumbnails: Thumbnails) -> FindingRow:
    decoded = [
        file for file in finding.files if file in thumbnails.records and thumbnails.records[file].width
    ]
    images = [
        (thumbnails.file_name(file), thumbnails.thumbnail(file, FINDING_SIDE, overlay=False))
        for file in (decoded[:_MAX_IMAGES] if finding.level != "note" else ())
    ]
    names = [thumbnails.file_name(file) for file in finding.files]
    badge = Badge(finding.level, LEVELS[finding.level])
    return FindingRow(badge, finding.code, finding.message, names[:_MAX_FILES], names[_MAX_FILES:], images)


def duplicate_clusters(data: ReportData, thumbnails: Thumbnails) -> list[Cluster]:
    """Return the groups of duplicates, those in train and validation first."""
    clusters = [finding for finding in data.findings if finding.code in _DUPLICATE_CODES]
    leaks = {finding.files: finding.message for finding in data.findings if finding.code == _LEAK_CODE}
    clusters.sort(key=lambda cluster: cluster.files not in leaks)
    return [_cluster(cluster, leaks.get(cluster.files), thumbnails) for cluster in clusters[:_MAX_CLUSTERS]]


def num_hidden_clusters(data: ReportData) -> int:
    """Return the number of groups of duplicates that the page does not show."""
    return max(0, sum(finding.code in _DUPLICATE_CODES for finding in data.findings) - _MAX_CLUSTERS)


def _cluster(cluster: Finding, leak: str | None, thumbnails: Thumbnails) -> Cluster:
    files = cluster.files[:_MAX_CLUSTER_IMAGES]
    areas = [_area(file, thumbnails) for file in files]
    largest = max(areas, default=0)
    has_single_largest = areas.count(largest) == 1
    images = []
    for file, area in zip(files, areas, strict=True):
        record = thumbnails.records.get(file)
        size = f"{record.width} × {record.height}" if record and record.width else "in another folder"
        note = ", the largest" if has_single_largest and area == largest else ""
        thumbnail = thumbnails.thumbnail(file, round(CARD_SIDE * 0.65), overlay=False)
        images.append(ClusterImage(thumbnails.file_name(file), thumbnail, f"{size}{note}"))
    return Cluster(cluster.message, leak, images, len(cluster.files) - len(files))


def _area(file: str, thumbnails: Thumbnails) -> int:
    record = thumbnails.records.get(file)
    return record.width * record.height if record else 0


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
