"""An evaluation as files: report.html, scores.json, scores.csv and contact.png."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lorakit.core import storage
from lorakit.evaluation.report import gallery
from lorakit.evaluation.report.page import evaluation_page
from lorakit.evaluation.score_table import SCORES_FILE, Evaluation
from lorakit.evaluation.select import Selection
from lorakit.reports import Html

REPORT_FILE, CSV_FILE, CONTACT_SHEET_FILE = "report.html", "scores.csv", "contact.png"
_LIBRARIES = ("lorakit", "torch", "diffusers", "transformers", "peft", "open-clip-torch", "timm", "numpy")
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet may take for a formula


def write_evaluation(
    root: Path,
    evaluation: Evaluation,
    pick: Selection | None,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    extra: Sequence[Html] = (),
) -> Path:
    """Write the four files into `root`, to which the pictures' paths are relative; returns the page."""
    found = package_versions()
    value = evaluation.to_json() | {"versions": found, "summary": summary_rows(evaluation)}
    storage.write_json(root / SCORES_FILE, value | ({"pick": pick.to_json()} if pick else {}))
    storage.write_text(root / CSV_FILE, format_scores_csv(evaluation))
    lead = pick.arm if pick and pick.arm else evaluation.arms[-1]
    before = evaluation.base if evaluation.base is not lead else None
    storage.save_image(
        root / CONTACT_SHEET_FILE, gallery.evaluation_contact_sheet(evaluation, before, lead, root)
    )
    text = evaluation_page(evaluation, pick, root, metrics=metrics, versions=found, extra=extra)
    return storage.write_text(root / REPORT_FILE, text)


def write_comparison(root: Path, evaluation: Evaluation, text: str) -> Path:
    """The same of two arms side by side, whose page is `text`."""
    storage.write_json(root / SCORES_FILE, evaluation.to_json() | {"summary": summary_rows(evaluation)})
    storage.write_text(root / CSV_FILE, format_scores_csv(evaluation))
    first, second = evaluation.arms
    storage.save_image(
        root / CONTACT_SHEET_FILE, gallery.evaluation_contact_sheet(evaluation, first, second, root)
    )
    return storage.write_text(root / REPORT_FILE, text)


def summary_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each arm's mean of each metric with its interval, by kind of prompts."""
    kinds = dict.fromkeys(prompt.kind for prompt in evaluation.prompts)
    rows = []
    for arm in evaluation.arms:
        for kind in kinds:
            prompts = [prompt for prompt in evaluation.prompts if prompt.kind == kind]
            row: dict[str, Any] = {"arm": arm.name, "kind": kind}
            for name in evaluation.measured():
                if interval := evaluation.interval(arm, name, prompts):
                    row[name] = interval.to_json()
            if evaluation.base and arm is not evaluation.base:
                gain = evaluation.gain(evaluation.base, arm, "clip_t", prompts)
                row["clip_t_gain"] = gain.to_json() if gain else None
            rows.append(row)
    return rows


def format_scores_csv(evaluation: Evaluation) -> str:
    """One line a picture. Texts that a spreadsheet could run as a formula start with an apostrophe."""
    names = sorted({name for arm in evaluation.arms for name in arm.scores})
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    heads = ["arm", "step", "strength", "prompt_id", "kind", "role", "seed", "prompt", "score_text", "file"]
    rows.writerow([*heads, *names, "choice", "lookalike"])
    by_id = {prompt.id: prompt for prompt in evaluation.prompts}
    for arm in evaluation.arms:
        for key, file in arm.files.items():
            prompt = by_id[key[0]]
            about = [
                escape_csv_cell(arm.name),
                arm.step,
                arm.strength,
                escape_csv_cell(prompt.id),
                escape_csv_cell(prompt.kind),
            ]
            about += [
                prompt.role(evaluation.trigger),
                key[1],
                escape_csv_cell(prompt.prompt),
                escape_csv_cell(prompt.score_text),
            ]
            values = [f"{arm.scores[n][key]:.6f}" if key in arm.scores.get(n, {}) else "" for n in names]
            texts = [escape_csv_cell(arm.choices.get(key, "")), escape_csv_cell(arm.lookalikes.get(key, ""))]
            rows.writerow([*about, escape_csv_cell(file), *values, *texts])
    return buffer.getvalue()


def escape_csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def package_versions() -> dict[str, str]:
    """Python and the installed libraries that make and score pictures."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
