"""The training report, RUN/report.html: settings, loss curves, and samples of the fixed prompts by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit import manifest, reports
from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.data.items import load_concepts
from lorakit.training import data_record, data_warnings, run_records, sample_sheet
from lorakit.training.run_folder import RunFolder

TEMPLATE = Path(__file__).with_name("templates") / "training_report.html"
MAX_COLUMNS, MAX_ROWS = 10, 24  # sampled steps (the first and last among them), prompts and seeds
CELL_PIXELS, ENLARGED_PIXELS = 128, 448  # sides of a sample, and after a click


def write_training_report(run: RunFolder, recipe: Recipe, status: str) -> Path:
    """Write the report from the files of the run; `status` is that of the run when it is written."""
    record = run.record() | {"status": status}
    concepts = record.get("concepts")
    text = reports.render_page(
        TEMPLATE,
        title=run.path.name,
        subtitle=f"Training report of {Path(recipe.base).name}: {status}",
        figures=_key_figures(run, recipe, record),
        curves=reports.training_curves(run.metrics()),
        samples=_samples(run.path),
        warnings=_data_warnings(recipe),
        concepts=reports.Table(data_record.COLUMNS, data_record.table_cells(concepts)) if concepts else None,
        buckets=_buckets(recipe),
        settings=reports.Table(["", ""], _overview_rows(run, recipe, record)),
        versions=reports.Table(["Package", "Version"], list(record["versions"].items())),
    )
    return storage.write_text(run.path / run_records.REPORT_FILE, text)


def _key_figures(run: RunFolder, recipe: Recipe, record: dict[str, Any]) -> list[tuple[str, str]]:
    metrics = run.metrics()
    figures = [
        (str(record.get("num_images", "?")), "images"),
        (f"{recipe.train.steps:,}", "steps"),
    ]
    names = {"loss": "last loss", "validation_loss": "last validation loss"}
    for key, text in names.items():
        values = [row[key] for row in metrics if isinstance(row.get(key), int | float)]
        figures += [(f"{values[-1]:.4f}", text)] if values else []
    if run.adapter_file.exists():
        figures.append((f"{run.adapter_file.stat().st_size / 2**20:.1f} MiB", "adapter file"))
    return figures


def _overview_rows(run: RunFolder, recipe: Recipe, record: dict[str, Any]) -> list[tuple[str, str]]:
    train, optimizer = recipe.train, recipe.optimizer
    exports = sorted(file.name for file in (run.path / "exports").glob("*.safetensors"))
    adapter = run.adapter_file
    changed = recipe.objective.model_dump(exclude_defaults=True)
    size = f", {adapter.stat().st_size / 2**20:.1f} MiB" if adapter.exists() else ""
    return [
        ("Base", Path(recipe.base).name),
        ("Status", f"{record['status']}, {len(run.metrics())} rows of metrics"),
        ("Data", f"{record.get('num_images', '?')} images at resolution {recipe.resolution}"),
        *_caption_rows(record.get("concepts") or ()),
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


def _caption_rows(concepts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the use of the captions of each concept."""
    rows = [line.partition(": ") for line in data_record.caption_lines(concepts)]
    return [(head.capitalize(), text) for head, _, text in rows]


def _data_warnings(recipe: Recipe) -> list[str]:
    """Return the warnings about captions that the run began with, from the current manifests."""
    concepts = [c for c in recipe.concepts if (c.folder / manifest.MANIFEST_FILE).exists()]
    return list(data_warnings.data_warnings(load_concepts(concepts)))


def _buckets(recipe: Recipe) -> reports.Chart | None:
    """Return a chart of the number of images in each bucket of the manifests."""
    folders = [concept.folder for concept in recipe.concepts]
    counts: dict[str, int] = {}
    for folder in folders:
        prepared = (folder / manifest.MANIFEST_FILE).exists()
        for record in manifest.load_manifest(folder) if prepared else ():
            if record.keep and record.bucket:
                name = f"{record.bucket[0]}×{record.bucket[1]}"
                counts[name] = counts.get(name, 0) + 1
    return reports.bar_chart(list(counts), list(counts.values()), y_label="images") if counts else None


def _samples(run: Path) -> reports.Grid | None:
    """Return a row for each prompt and seed, a column for each sampled step."""
    folders = sample_sheet.sampled_step_folders(run, MAX_COLUMNS)
    if not folders:
        return None
    rows = [
        reports.GridRow(
            f"{row['prompt']} (seed {row['seed']})",
            [_cell(folder / row["file"], f"{row['prompt']}, {folder.name}") for folder in folders],
        )
        for row in storage.read_json(folders[-1] / "samples.json")[:MAX_ROWS]
    ]
    return reports.Grid([sample_sheet.step_label(folder) for folder in folders], rows, "Samples by step")


def _cell(file: Path, text: str) -> list[reports.EmbeddedImage]:
    if not file.exists():
        return []
    with Image.open(file) as image:
        return [
            reports.embed_image(image.convert("RGB"), alt=text, width=CELL_PIXELS, zoom_width=ENLARGED_PIXELS)
        ]
