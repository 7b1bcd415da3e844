"""The training report, RUN/report.html: settings, loss curves, and samples of the fixed prompts by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lorakit import manifest, reports
from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.data.items import load_concepts
from lorakit.reports import Html
from lorakit.training import data_record, data_warnings, run_records, sample_sheet
from lorakit.training.run_folder import RunFolder

MAX_COLUMNS, MAX_ROWS = 10, 24  # sampled steps (the first and last among them), prompts and seeds
CELL_PIXELS, ENLARGED_PIXELS = 128, 448  # sides of a sample, and after a click


def write_training_report(run: RunFolder, recipe: Recipe, status: str) -> Path:
    """Write the report from the files of the run; `status` is that of the run when it is written."""
    record = run.record() | {"status": status}
    body = [
        reports.section("Settings", reports.html_table(["", ""], _overview_rows(run, recipe, record))),
        reports.section("Loss", *reports.training_curves(run.metrics())),
        _data_warnings(recipe),
        _concepts(record),
        _buckets(recipe),
        _samples(run.path),
        reports.section(
            "Versions", reports.html_table(["Package", "Version"], list(record["versions"].items()))
        ),
    ]
    text = reports.html_page(run.path.name, [part for part in body if part])
    return storage.write_text(run.path / run_records.REPORT_FILE, text)


def _overview_rows(run: RunFolder, recipe: Recipe, record: dict[str, object]) -> list[tuple[str, str]]:
    train, optimizer = recipe.train, recipe.optimizer
    exports = sorted(file.name for file in (run.path / "exports").glob("*.safetensors"))
    adapter = run.adapter_file
    changed = recipe.objective.model_dump(exclude_defaults=True)
    size = f", {adapter.stat().st_size / 2**20:.1f} MiB" if adapter.exists() else ""
    return [
        ("Base", Path(recipe.base).name),
        ("Status", f"{record['status']}, {len(run.metrics())} rows of metrics"),
        ("Data", f"{record.get('num_images', '?')} images at resolution {recipe.resolution}"),
        (
            "Adapter",
            f"{recipe.adapter.type}, rank {recipe.adapter.rank}, alpha {recipe.adapter.alpha:g}{size}",
        ),
        ("Optimizer", f"{optimizer.name}, lr {optimizer.lr:g}, {optimizer.schedule}"),
        (
            "Objective",
            ", ".join(f"{key} {value}" for key, value in changed.items()) or "the base model's own",
        ),
        ("Steps", f"{train.steps} of {recipe.effective_batch} images, {train.precision}, seed {train.seed}"),
        ("Exports", ", ".join(exports) or "none"),
    ]


def _data_warnings(recipe: Recipe) -> Html:
    """The warnings about captions that the run began with, from the manifests as they are now."""
    concepts = [c for c in recipe.concepts if (c.folder / manifest.MANIFEST_FILE).exists()]
    warnings = data_warnings.data_warnings(load_concepts(concepts))
    if not warnings:
        return Html()
    return reports.section("Warnings", reports.tag("ul", *(reports.tag("li", text) for text in warnings)))


def _concepts(record: dict[str, Any]) -> Html:
    """A row for each concept: its images, repeats, captions and steps per epoch."""
    if not (rows := record.get("concepts")):
        return Html()
    return reports.section(
        "Concepts", reports.html_table(list(data_record.COLUMNS), data_record.table_cells(rows))
    )


def _buckets(recipe: Recipe) -> Html:
    """The number of images in each bucket of the manifests."""
    folders = [concept.folder for concept in recipe.concepts]
    counts: dict[str, int] = {}
    for folder in folders:
        prepared = (folder / manifest.MANIFEST_FILE).exists()
        for record in manifest.load_manifest(folder) if prepared else ():
            if record.keep and record.bucket:
                name = f"{record.bucket[0]}×{record.bucket[1]}"
                counts[name] = counts.get(name, 0) + 1
    if not counts:
        return Html()
    return reports.section(
        "Buckets", reports.bar_chart(list(counts), list(counts.values()), y_label="images")
    )


def _samples(run: Path) -> Html:
    """A row for each prompt and seed, a column for each sampled step."""
    folders = sample_sheet.sampled_step_folders(run, MAX_COLUMNS)
    if not folders:
        return Html()
    rows = storage.read_json(folders[-1] / "samples.json")[:MAX_ROWS]
    cells = [[_cell(folder / row["file"], row["prompt"]) for folder in folders] for row in rows]
    heads = [sample_sheet.step_label(folder) for folder in folders]
    names = [f"{row['prompt']} (seed {row['seed']})" for row in rows]
    return reports.section("Samples", reports.html_grid(heads, names, cells))


def _cell(file: Path, text: str) -> Html:
    if not file.exists():
        return Html()
    with Image.open(file) as image:
        return reports.embed_image(
            image.convert("RGB"), alt=text, width=CELL_PIXELS, zoom_width=ENLARGED_PIXELS
        )
