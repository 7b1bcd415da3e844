"""The first sections of the report: a summary line, the findings with images, and the duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from data_tools.findings import Finding
from data_tools.report.data import ReportData
from data_tools.report.thumbnails import CARD_SIDE, FINDING_SIDE, Thumbnails
from lorakit.reports import Html, details, join, section, summary_banner, tag

_MAX_IMAGES = 5  # beside a finding
_MAX_CLUSTERS = 40
_MAX_CLUSTER_IMAGES = 8
_DUPLICATE_CODES = ("duplicate", "near_duplicate")
_LEAK_CODE = "split_leak"  # a cluster across train and validation


def summary_line(data: ReportData) -> Html:
    """Return a banner: ready to train, or not."""
    errors = [finding for finding in data.findings if finding.level == "error"]
    warnings = [finding for finding in data.findings if finding.level == "warning"]
    files = len({file for finding in errors for file in finding.files})
    if files and files == sum(not record.keep for record in data.records):
        rest = f"the other {len(data.kept)} are ready"
        return summary_banner(f"{_files(files)} cannot be used and {_is(files)} excluded; {rest}.", False)
    if errors:
        return summary_banner(f"{_files(files)} cannot be used yet. See the findings below.", False)
    if warnings:
        number = "1 warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        return summary_banner(f"Ready to train, with {number}.", None)
    return summary_banner("Ready to train. No problems found.", True)


def findings_section(data: ReportData, thumbnails: Thumbnails) -> Html:
    """Return one row for each finding, worst first; groups of duplicates, shown below, share a row."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    rows = []
    for finding in data.findings:
        if finding.code in (*_DUPLICATE_CODES, _LEAK_CODE):
            groups[finding.level, finding.code].append(finding)
        else:
            rows.append(_row(finding, thumbnails))
    for (level, code), group in groups.items():
        message = (
            f"{len(group)} groups, shown below" if len(group) > 1 else f"{group[0].message}, shown below"
        )
        rows.append(_row(Finding(level, code, message), thumbnails))  # type: ignore[arg-type]
    if not rows:
        return Html("")
    alert_rows = [row for level, row in rows if level != "note"]
    note_rows = [row for level, row in rows if level == "note"]
    parts = [tag("ul", *alert_rows, class_="findings")] if alert_rows else []
    if note_rows:
        notes = tag("ul", *note_rows, class_="findings")
        number = "1 note" if len(note_rows) == 1 else f"{len(note_rows)} notes"
        parts.append(details(f"{number}: nothing to do", notes) if alert_rows else notes)
    return section("Findings", *parts)


def duplicates_section(data: ReportData, thumbnails: Thumbnails) -> Html:
    """Show the images of each group of duplicates side by side."""
    clusters = [finding for finding in data.findings if finding.code in _DUPLICATE_CODES]
    if not clusters:
        return Html("")
    leaks = {finding.files: finding.message for finding in data.findings if finding.code == _LEAK_CODE}
    clusters.sort(key=lambda cluster: cluster.files not in leaks)
    groups = (_cluster(cluster, leaks.get(cluster.files), thumbnails) for cluster in clusters[:_MAX_CLUSTERS])
    parts = [tag("div", *groups, class_="clusters")]
    if len(clusters) > _MAX_CLUSTERS:
        parts.append(tag("p", f"And {len(clusters) - _MAX_CLUSTERS} more groups: see report.json."))
    return section("Duplicates", *parts)


def _cluster(cluster: Finding, leak: str | None, thumbnails: Thumbnails) -> Html:
    files = cluster.files[:_MAX_CLUSTER_IMAGES]
    areas = [_area(file, thumbnails) for file in files]
    largest = max(areas, default=0)
    has_single_largest = areas.count(largest) == 1
    cells = []
    for file in files:
        record = thumbnails.records.get(file)
        size = f"{record.width} × {record.height}" if record and record.width else "in another folder"
        is_largest = has_single_largest and _area(file, thumbnails) == largest
        name = [thumbnails.link(file), tag("small", f"{size}{', the largest' if is_largest else ''}")]
        cells.append(
            tag(
                "figure",
                thumbnails.thumbnail(file, round(CARD_SIDE * 0.65), overlay=False),
                tag("figcaption", *name),
            )
        )
    rest = len(cluster.files) - len(files)
    more = [tag("p", f"and {rest} more")] if rest else []
    warning = [tag("p", tag("span", _LEAK_CODE, class_="badge warn"), leak)] if leak else []
    head = [tag("h3", cluster.message), *warning]
    return tag("div", *head, tag("div", *cells, class_="row"), *more, class_="cluster")


def _area(file: str, thumbnails: Thumbnails) -> int:
    record = thumbnails.records.get(file)
    return record.width * record.height if record else 0


def _row(finding: Finding, thumbnails: Thumbnails) -> tuple[str, Html]:
    badge_class = {"error": "badge bad", "warning": "badge warn", "note": "badge"}[finding.level]
    decoded = [
        file for file in finding.files if file in thumbnails.records and thumbnails.records[file].width
    ]
    images = [
        tag(
            "a",
            thumbnails.thumbnail(file, FINDING_SIDE, overlay=False),
            href=f"#{thumbnails.anchors[file]}",
            title=file,
        )
        for file in decoded[:_MAX_IMAGES]
    ]
    head = tag(
        "div", tag("span", finding.level, class_=badge_class), tag("code", finding.code), class_="what"
    )
    body = [tag("p", finding.message), _file_links(finding.files, thumbnails)]
    strip = [tag("div", *images, class_="strip")] if images and finding.level != "note" else []
    return finding.level, tag("li", head, tag("div", *body, class_="why"), *strip)


def _file_links(files: Sequence[str], thumbnails: Thumbnails, limit: int = 6) -> Html:
    if not files:
        return Html("")
    links = join((thumbnails.link(file) for file in files[:limit]), ", ")
    if len(files) <= limit:
        return tag("p", links, class_="files")
    rest = details(
        f"and {len(files) - limit} more", tag("p", join((thumbnails.link(f) for f in files[limit:]), ", "))
    )
    return tag("div", links, rest, class_="files")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
