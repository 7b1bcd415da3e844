"""What is wrong, before anything else: the verdict, the findings with their pictures, the duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from data_tools.findings import Finding
from data_tools.report.facts import ReportData
from data_tools.report.gallery import CARD_SIDE, FINDING_SIDE, Thumbnails
from lorakit.reports import Html, details, join, section, summary_banner, tag

_PICTURES = 5  # beside a finding
_CLUSTERS = 40
_IN_CLUSTER = 8
_DUPLICATE_CODES = ("duplicate", "near_duplicate")
_LEAK_CODE = "leak"  # such a cluster across train and validation


def summary_line(facts: ReportData) -> Html:
    """The one line to read first."""
    errors = [finding for finding in facts.findings if finding.level == "error"]
    warnings = [finding for finding in facts.findings if finding.level == "warning"]
    files = len({file for finding in errors for file in finding.files})
    if files and files == sum(not record.keep for record in facts.records):
        rest = f"the other {len(facts.kept)} are ready"
        return summary_banner(f"{_files(files)} cannot be used and {_is(files)} set aside; {rest}.", False)
    if errors:
        return summary_banner(
            f"{_files(files)} cannot be used as {_is(files)}. See the findings below.", False
        )
    if warnings:
        things = "One thing deserves" if len(warnings) == 1 else f"{len(warnings)} things deserve"
        return summary_banner(f"Ready to train. {things} a look.", None)
    return summary_banner("Ready to train. Nothing to complain about.", True)


def findings_section(facts: ReportData, gallery: Thumbnails) -> Html:
    """One row a finding, worst first; groups of duplicates share a row, for they are shown below."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    rows = []
    for finding in facts.findings:
        if finding.code in (*_DUPLICATE_CODES, _LEAK_CODE):
            groups[finding.level, finding.code].append(finding)
        else:
            rows.append(_row(finding, gallery))
    for (level, code), group in groups.items():
        message = (
            f"{len(group)} groups, shown below" if len(group) > 1 else f"{group[0].message}, shown below"
        )
        rows.append(_row(Finding(level, code, message), gallery))  # type: ignore[arg-type]
    order = {"error": 0, "warning": 1, "note": 2}
    if not rows:
        return Html("")
    loud = [row for level, row in rows if order[level] < 2]
    quiet = [row for level, row in rows if order[level] == 2]
    parts = [tag("ul", *loud, class_="findings")] if loud else []
    if quiet:
        notes = tag("ul", *quiet, class_="findings")
        words = "1 note" if len(quiet) == 1 else f"{len(quiet)} notes"
        parts.append(details(f"{words}, which need nothing from you", notes) if loud else notes)
    return section("Findings", *parts)


def duplicates_section(facts: ReportData, gallery: Thumbnails) -> Html:
    """The pictures of each group of duplicates, side by side."""
    clusters = [finding for finding in facts.findings if finding.code in _DUPLICATE_CODES]
    if not clusters:
        return Html("")
    leaks = {finding.files: finding.message for finding in facts.findings if finding.code == _LEAK_CODE}
    clusters.sort(key=lambda cluster: cluster.files not in leaks)
    groups = (_cluster(cluster, leaks.get(cluster.files), gallery) for cluster in clusters[:_CLUSTERS])
    parts = [tag("div", *groups, class_="clusters")]
    if len(clusters) > _CLUSTERS:
        parts.append(tag("p", f"And {len(clusters) - _CLUSTERS} more groups, listed in the JSON twin."))
    return section("Duplicates", *parts)


def _cluster(cluster: Finding, leak: str | None, gallery: Thumbnails) -> Html:
    shown = cluster.files[:_IN_CLUSTER]
    areas = [_area(file, gallery) for file in shown]
    largest = max(areas, default=0)
    alone = areas.count(largest) == 1
    cells = []
    for file in shown:
        record = gallery.records.get(file)
        size = f"{record.width} × {record.height}" if record and record.width else "elsewhere"
        best = alone and _area(file, gallery) == largest
        name = [gallery.link(file), tag("small", f"{size}{', the largest' if best else ''}")]
        cells.append(
            tag(
                "figure", gallery.shot(file, round(CARD_SIDE * 0.65), overlay=False), tag("figcaption", *name)
            )
        )
    rest = len(cluster.files) - len(shown)
    more = [tag("p", f"and {rest} more")] if rest else []
    warned = [tag("p", tag("span", _LEAK_CODE, class_="badge warn"), leak)] if leak else []
    head = [tag("h3", cluster.message), *warned]
    return tag("div", *head, tag("div", *cells, class_="row"), *more, class_="cluster")


def _area(file: str, gallery: Thumbnails) -> int:
    record = gallery.records.get(file)
    return record.width * record.height if record else 0


def _row(finding: Finding, gallery: Thumbnails) -> tuple[str, Html]:
    label = {"error": "badge bad", "warning": "badge warn", "note": "badge"}[finding.level]
    known = [file for file in finding.files if file in gallery.records and gallery.records[file].width]
    pictures = [
        tag(
            "a", gallery.shot(file, FINDING_SIDE, overlay=False), href=f"#{gallery.anchors[file]}", title=file
        )
        for file in known[:_PICTURES]
    ]
    head = tag("div", tag("span", finding.level, class_=label), tag("code", finding.code), class_="what")
    body = [tag("p", finding.message), _file_links(finding.files, gallery)]
    strip = [tag("div", *pictures, class_="strip")] if pictures and finding.level != "note" else []
    return finding.level, tag("li", head, tag("div", *body, class_="why"), *strip)


def _file_links(files: Sequence[str], gallery: Thumbnails, most: int = 6) -> Html:
    if not files:
        return Html("")
    shown = join((gallery.link(file) for file in files[:most]), ", ")
    if len(files) <= most:
        return tag("p", shown, class_="files")
    rest = details(
        f"and {len(files) - most} more", tag("p", join((gallery.link(f) for f in files[most:]), ", "))
    )
    return tag("div", shown, rest, class_="files")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
