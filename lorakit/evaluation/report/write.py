"""An evaluation as files: report.html, scores.json, scores.csv and contact-sheet.png."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lorakit.core import storage
from lorakit.evaluation.report.contact_sheet import evaluation_contact_sheet
from lorakit.evaluation.report.page import comparison_page, evaluation_page
from lorakit.evaluation.report.variants import best_variant
from lorakit.evaluation.score_table import SCORES_FILE, Evaluation
from lorakit.evaluation.select import Selection
from lorakit.evaluation.vote.summary import readable_votes

REPORT_FILE, CSV_FILE, CONTACT_SHEET_FILE = "report.html", "scores.csv", "contact-sheet.png"
_LIBRARIES = ("lorakit", "torch", "diffusers", "transformers", "peft", "open-clip-torch", "timm", "numpy")
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # a spreadsheet may run a cell that starts with one of them
_SAMPLE_COLUMNS = (
    "variant",
    "step",
    "strength",
    "prompt_id",
    "kind",
    "role",
    "seed",
    "prompt",
    "score_text",
    "file",
)


def write_evaluation(
    root: Path,
    evaluation: Evaluation,
    selection: Selection | None,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the four files to `root`, to which the paths of the images are relative; return the report.

    `metrics` are rows of the run's metrics.jsonl. The votes on these images are part of the report.
    """
    versions = package_versions()
    value = evaluation.to_json() | {"versions": versions, "summary": summary_rows(evaluation)}
    storage.write_json(root / SCORES_FILE, value | ({"selection": selection.to_json()} if selection else {}))
    storage.write_text(root / CSV_FILE, format_scores_csv(evaluation))
    best = best_variant(evaluation, selection)
    base = evaluation.base if evaluation.base is not best else None
    sheet = evaluation_contact_sheet(evaluation, base, best, root)
    storage.save_image(root / CONTACT_SHEET_FILE, sheet)
    votes = readable_votes(root, evaluation)
    page = evaluation_page(evaluation, selection, root, metrics=metrics, versions=versions, votes=votes)
    return storage.write_text(root / REPORT_FILE, page)


def write_comparison(root: Path, evaluation: Evaluation) -> Path:
    """Write the four files of a comparison of two variants to `root`; return the report."""
    storage.write_json(root / SCORES_FILE, evaluation.to_json() | {"summary": summary_rows(evaluation)})
    storage.write_text(root / CSV_FILE, format_scores_csv(evaluation))
    first, second = evaluation.variants
    storage.save_image(root / CONTACT_SHEET_FILE, evaluation_contact_sheet(evaluation, first, second, root))
    votes = readable_votes(root, evaluation)
    page = comparison_page(evaluation, root, versions=package_versions(), votes=votes)
    return storage.write_text(root / REPORT_FILE, page)


def summary_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the mean of each metric with its interval, one row for each variant and kind of prompts."""
    kinds = dict.fromkeys(prompt.kind for prompt in evaluation.prompts)
    rows = []
    for variant in evaluation.variants:
        for kind in kinds:
            prompts = [prompt for prompt in evaluation.prompts if prompt.kind == kind]
            row: dict[str, Any] = {"variant": variant.name, "kind": kind}
            for name in evaluation.metric_names():
                if interval := evaluation.interval(variant, name, prompts):
                    row[name] = interval.to_json()
            if evaluation.base and variant is not evaluation.base:
                gain = evaluation.paired_difference(evaluation.base, variant, "clip_t", prompts)
                row["clip_t_gain"] = gain.to_json() if gain else None
            rows.append(row)
    return rows


def format_scores_csv(evaluation: Evaluation) -> str:
    """Return a CSV with one line for each image; cells that could run as formulas get an apostrophe."""
    names = sorted({name for variant in evaluation.variants for name in variant.scores})
    prompts = {prompt.id: prompt for prompt in evaluation.prompts}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_SAMPLE_COLUMNS, *names, "clip_choice", "nearest_train_image"])
    for variant in evaluation.variants:
        for key, file in variant.files.items():
            prompt = prompts[key.prompt_id]
            values = {
                "variant": escape_csv_cell(variant.name),
                "step": variant.step,
                "strength": variant.strength,
                "prompt_id": escape_csv_cell(prompt.id),
                "kind": escape_csv_cell(prompt.kind),
                "role": prompt.role(evaluation.triggers),
                "seed": key.seed,
                "prompt": escape_csv_cell(prompt.prompt),
                "score_text": escape_csv_cell(prompt.score_text),
                "file": escape_csv_cell(file),
            }
            scores = [
                f"{variant.scores[name][key]:.6f}" if key in variant.scores.get(name, {}) else ""
                for name in names
            ]
            texts = [variant.clip_choices.get(key, ""), variant.nearest_train_images.get(key, "")]
            cells = [values[column] for column in _SAMPLE_COLUMNS]
            writer.writerow([*cells, *scores, *map(escape_csv_cell, texts)])
    return buffer.getvalue()


def escape_csv_cell(text: str) -> str:
    """Return a cell that no spreadsheet runs as a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that sample and score images."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
