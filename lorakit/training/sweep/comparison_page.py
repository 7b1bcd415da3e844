"""The report of a sweep: OUT/report.html and OUT/comparison.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorakit import reports
from lorakit.core import storage
from lorakit.training.run_records import REPORT_FILE
from lorakit.training.sweep import sweep_record
from lorakit.training.sweep.comparison import Comparison, MemberResult, compare_members

TEMPLATE = Path(__file__).with_name("templates") / "sweep.html"
MAX_CURVES = 6  # as many as there are colors


def write_comparison(out: Path) -> Path:
    """Compare the members of a sweep and write its report; returns report.html."""
    comparison = compare_members(out)
    storage.write_json(out / sweep_record.COMPARISON_FILE, comparison.to_json())
    rows = comparison.members
    text = reports.render_page(
        TEMPLATE,
        title=out.resolve().name,
        subtitle=f"Sweep of {len(rows)} adapters",
        note=comparison.note,
        figures=_figures(comparison),
        curves=_curves(rows),
        hidden=[row.name for row in rows if row.curve][MAX_CURVES:],
        members=reports.Table(_headers(), [_row(out, row) for row in rows], "Members"),
        failures=[f"{row.name}: {row.error}" for row in rows if row.error],
    )
    return storage.write_text(out / sweep_record.REPORT_FILE, text)


def _figures(comparison: Comparison) -> list[tuple[str, str]]:
    rows = comparison.members
    figures = [(str(len(rows)), "adapters"), (str(sum(row.status == "done" for row in rows)), "finished")]
    if rows and rows[0].held_out_loss is not None:
        figures += [(rows[0].name, "lowest held-out loss"), (f"{rows[0].held_out_loss:.4f}", "its loss")]
    return figures


def _curves(rows: list[MemberResult]) -> reports.Chart | None:
    series = {row.name: row.curve for row in rows if row.curve}
    kept = dict(list(series.items())[:MAX_CURVES])
    return reports.line_chart(kept, x_label="step", y_label="validation loss") if kept else None


def _headers() -> list[str]:
    return ["Member", "Held-out loss", "Above the best (95 %)", "Verdict", "Training loss", "Steps", "Status"]


def _row(out: Path, row: MemberResult) -> list[Any]:
    report = out / row.name / REPORT_FILE
    name: Any = reports.file_link(row.name, f"{row.name}/{REPORT_FILE}") if report.exists() else row.name
    return [
        name,
        _number(row.held_out_loss),
        _interval(row),
        _verdict(row),
        _number(row.training_loss),
        str(row.steps),
        row.status,
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(row: MemberResult) -> str:
    if row.difference is None:
        return "-"
    difference = row.difference
    return f"{difference.mean:+.4f} ({difference.ci_low:+.4f} to {difference.ci_high:+.4f})"


def _verdict(row: MemberResult) -> str:
    if row.held_out_loss is None:
        return "-"
    if row.is_worse is None:
        return "lowest loss" if row.difference is None and row.is_worse is None else "-"
    return "worse" if row.is_worse else "not distinguishable"
