"""The first sections of the report: a summary line, the findings with images, and the duplicates."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from data_tools.finding_text import AREAS, EXCLUDED, area_of, describe
from data_tools.findings import Finding, pluralize
from data_tools.report.data import ReportData
from data_tools.report.thumbnails import CARD_SIDE, FINDING_SIDE, FileName, Thumbnail, Thumbnails
from lorakit.core import platform
from lorakit.core.visible_text import escape_name
from lorakit.reports import Badge, Level

_MAX_IMAGES, _MAX_FILES = 5, 6  # beside a finding
_MAX_MORE_FILES = 200  # behind a click; report.json has all
_MAX_PROBLEMS, _MAX_MORE_PROBLEMS = 3, 50  # of one code
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
class Problem:
    """A problem of some files: the first of them, the next behind a click, and the number of the rest."""

    text: str
    first_files: Sequence[FileName] = ()
    more_files: Sequence[FileName] = ()
    num_hidden: int = 0


@dataclass(frozen=True)
class FindingRow:
    """All findings of one code and level: what is wrong, what to do, and images."""

    badge: Badge
    code: str
    title: str
    action: str
    first_problems: Sequence[Problem]
    more_problems: Sequence[Problem] = ()
    num_hidden: int = 0
    images: Sequence[tuple[FileName, Thumbnail]] = ()


@dataclass(frozen=True)
class FindingGroup:
    """The findings on one part of the dataset, worst first."""

    anchor: str
    title: str
    summary: str
    rows: list[FindingRow]


@dataclass(frozen=True)
class FindingGroups:
    """Findings that need an action, and notes."""

    alerts: list[FindingGroup] = field(default_factory=list)
    notes: list[FindingGroup] = field(default_factory=list)
    num_notes: int = 0


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
    """Return the first line: how many images are ready, and what to do first."""
    errors = [finding for finding in data.findings if finding.level == "error"]
    num_warnings = sum(finding.level == "warning" for finding in data.findings)
    excluded = sum(not record.keep for record in data.records)
    warnings = f" with {pluralize(num_warnings, 'warning')}" if num_warnings else ""
    if not data.kept:
        return Summary("No image can be used yet.", "bad", _next_step(data))
    if any(area_of(finding.code) != EXCLUDED for finding in errors):
        text = f"{_images(len(data.kept))} of {len(data.records)} can be used, but there are errors."
        return Summary(text, "bad", _next_step(data))
    if errors:
        rest = f"the other {len(data.kept)} are ready{warnings}"
        text = f"{_files(excluded)} cannot be used and {_is(excluded)} excluded; {rest}."
        return Summary(text, "warn", _next_step(data))
    if num_warnings:
        return Summary(f"Ready to train,{warnings}.", "warn", _next_step(data))
    return Summary("Ready to train. No problems found.", "good")


def _next_step(data: ReportData) -> str:
    folder = platform.quote_argument(escape_name(data.folder)).replace("`", "'")
    return f"correct what the findings name, worst first, then run `lorakit data prepare {folder}` again"


def finding_groups(data: ReportData, thumbnails: Thumbnails) -> FindingGroups:
    """Return the findings by the part of the dataset that they concern."""
    by_row: dict[tuple[str, bool, str, str], list[Finding]] = defaultdict(list)
    for finding in data.findings:
        key = area_of(finding.code), finding.level == "note", finding.level, finding.code
        by_row[key].append(finding)
    rows: dict[tuple[str, bool], list[FindingRow]] = defaultdict(list)
    numbers: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for (area, is_note, level, _), findings in sorted(by_row.items(), key=_by_level):
        rows[area, is_note].append(_row(findings, data.folder, thumbnails))
        numbers[area, is_note][level] += 1
    groups = FindingGroups(num_notes=sum(counts["note"] for counts in numbers.values()))
    for area, is_note in sorted(rows, key=lambda key: (_worst(numbers[key]), AREAS.index(key[0]))):
        counts = numbers[area, is_note]
        summary = ", ".join(pluralize(counts[level], level) for level in LEVELS if counts[level])
        anchor = f"{'notes' if is_note else 'findings'}-{AREAS.index(area)}"
        group = FindingGroup(anchor, area, summary, rows[area, is_note])
        (groups.notes if is_note else groups.alerts).append(group)
    return groups


def _by_level(item: tuple[tuple[str, bool, str, str], list[Finding]]) -> tuple[int, int, str]:
    (_, _, level, code), findings = item
    return list(LEVELS).index(level), -sum(len(finding.files) for finding in findings), code


def _worst(counts: Counter[str]) -> int:
    return next(index for index, level in enumerate(LEVELS) if counts[level])


def _row(findings: Sequence[Finding], folder: str, thumbnails: Thumbnails) -> FindingRow:
    """Return the row of findings of one code; groups of duplicates are shown in a section of their own."""
    first = findings[0]
    texts = [describe(finding, folder) for finding in findings[: _MAX_PROBLEMS + _MAX_MORE_PROBLEMS]]
    badge = Badge(first.level, LEVELS[first.level])
    if first.code in (*_DUPLICATE_CODES, _LEAK_CODE):
        text = f"{len(findings)} groups" if len(findings) > 1 else texts[0].problem
        problem = Problem(f"{text}: see Duplicates below")
        return FindingRow(badge, first.code, texts[0].title, texts[0].action, [problem])
    problems = [_problem(f, text.problem, thumbnails) for f, text in zip(findings, texts, strict=False)]
    return FindingRow(
        badge,
        first.code,
        texts[0].title,
        texts[0].action,
        problems[:_MAX_PROBLEMS],
        problems[_MAX_PROBLEMS:],
        len(findings) - len(problems),
        _images_of(findings, thumbnails) if first.level != "note" else (),
    )


def _problem(finding: Finding, text: str, thumbnails: Thumbnails) -> Problem:
    names = [thumbnails.file_name(file) for file in finding.files[: _MAX_FILES + _MAX_MORE_FILES]]
    hidden = len(finding.files) - len(names)
    return Problem(text, names[:_MAX_FILES], names[_MAX_FILES:], hidden)


def _images_of(findings: Sequence[Finding], thumbnails: Thumbnails) -> list[tuple[FileName, Thumbnail]]:
    files = (file for finding in findings for file in finding.files)
    decoded = (file for file in files if file in thumbnails.records and thumbnails.records[file].width)
    return [
        (thumbnails.file_name(file), thumbnails.thumbnail(file, FINDING_SIDE, overlay=False))
        for file in itertools.islice(dict.fromkeys(decoded), _MAX_IMAGES)
    ]


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


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
