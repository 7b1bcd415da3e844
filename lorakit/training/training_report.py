"""RUN/report.html: what was trained, how the loss went, and the fixed prompts as the training went on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lorakit import manifest, reports
from lorakit.config.recipe import Recipe
from lorakit.core import storage
from lorakit.reports import Html
from lorakit.training import validation
from lorakit.training.run_folder import RunFolder

COLUMNS = 10  # sampled steps shown, first and last among them
ROWS = 24
CELL_PIXELS, ENLARGED = 128, 448  # pixels


def write_training_report(run: RunFolder, recipe: Recipe, status: str) -> Path:
    """Write the page from the files of the run; `status` is what the run comes to with it."""
    record = storage.read_json(run.path / "run.json") | {"status": status}
    body = [
        reports.section("What was done", reports.html_table(["", ""], _overview_rows(run, recipe, record))),
        reports.section("Loss", *reports.training_curves(run.metrics())),
        _buckets(recipe),
        _samples(run.path),
        reports.section(
            "Versions", reports.html_table(["Package", "Version"], list(record["versions"].items()))
        ),
    ]
    text = reports.html_page(run.path.name, [part for part in body if part])
    return storage.write_text(run.path / "report.html", text)


def _overview_rows(run: RunFolder, recipe: Recipe, record: dict[str, object]) -> list[tuple[str, str]]:
    train, optimizer = recipe.train, recipe.optimizer
    exports = sorted(file.name for file in (run.path / "exports").glob("*.safetensors"))
    adapter = run.path / "adapter.safetensors"
    changed = recipe.objective.model_dump(exclude_defaults=True)
    size = f", {adapter.stat().st_size / 2**20:.1f} MiB" if adapter.exists() else ""
    return [
        ("Base", Path(recipe.base).name),
        ("Status", f"{record['status']}, {len(run.metrics())} rows of metrics"),
        ("Data", f"{record.get('images', '?')} images at resolution {recipe.resolution}"),
        (
            "Adapter",
            f"{recipe.adapter.type}, rank {recipe.adapter.rank}, alpha {recipe.adapter.alpha:g}{size}",
        ),
        ("Optimizer", f"{optimizer.name}, lr {optimizer.lr:g}, {optimizer.schedule}"),
        ("Objective", ", ".join(f"{key} {value}" for key, value in changed.items()) or "as the base says"),
        ("Steps", f"{train.steps} of {recipe.effective_batch} images, {train.precision}, seed {train.seed}"),
        ("Exports", ", ".join(exports) or "none"),
    ]


def _buckets(recipe: Recipe) -> Html:
    """How many images have each shape, as the manifest plans it."""
    if not (recipe.dataset / manifest.MANIFEST_FILE).exists():
        return Html()
    shapes: dict[str, int] = {}
    for record in manifest.load_manifest(recipe.dataset):
        if record.keep and record.bucket:
            name = f"{record.bucket[0]}×{record.bucket[1]}"
            shapes[name] = shapes.get(name, 0) + 1
    if not shapes:
        return Html()
    return reports.section("Shapes", reports.bar_chart(list(shapes), list(shapes.values()), y_label="images"))


def _samples(run: Path) -> Html:
    """Prompts and seeds down, sampled steps across."""
    folders = validation.sampled_step_folders(run, COLUMNS)
    if not folders:
        return Html()
    rows = storage.read_json(folders[-1] / "samples.json")[:ROWS]
    cells = [[_cell(folder / row["file"], row["prompt"]) for folder in folders] for row in rows]
    heads = [f"step {int(folder.name.removeprefix('step-'))}" for folder in folders]
    names = [f"{row['prompt']} (seed {row['seed']})" for row in rows]
    return reports.section("Samples", reports.html_grid(heads, names, cells))


def _cell(file: Path, text: str) -> Html:
    if not file.exists():
        return Html()
    with Image.open(file) as picture:
        return reports.embed_image(picture.convert("RGB"), alt=text, width=CELL_PIXELS, enlarged=ENLARGED)
