"""The folders of the samples that a run makes, and the contact sheet of them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lorakit import reports
from lorakit.core import storage
from lorakit.imaging.decode import decode_image
from lorakit.imaging.provenance import SAMPLES_FILE

CONTACT_SHEET_FILE = "contact-sheet.png"
MAX_ROWS, MAX_COLUMNS, CELL_PIXELS = 16, 12, 128


def step_folder(run: Path, step: int) -> Path:
    """The folder of the samples of a step."""
    return run / "samples" / f"step-{step:08d}"


def sampled_step_folders(run: Path, max_folders: int) -> list[Path]:
    """At most `max_folders` folders of sampled steps, the first and the last among them."""
    folders = sorted(folder.parent for folder in (run / "samples").glob(f"step-*/{SAMPLES_FILE}"))
    indices = {round(i * (len(folders) - 1) / (max_folders - 1)) for i in range(max_folders)}
    return [folder for i, folder in enumerate(folders) if i in indices]


def step_label(folder: Path) -> str:
    """The heading of a step's column: "step 250"."""
    return f"step {int(folder.name.removeprefix('step-'))}"


def write_contact_sheet(run: Path) -> Path:
    """Write the contact sheet: a row for each prompt and seed, a column for each sampled step."""
    folders = sampled_step_folders(run, MAX_COLUMNS)
    rows = storage.read_json(folders[-1] / SAMPLES_FILE)[:MAX_ROWS]
    cells = [[_open_if_exists(folder / row["file"]) for folder in folders] for row in rows]
    sheet = reports.contact_sheet(
        cells,
        column_heads=[step_label(folder) for folder in folders],
        row_heads=[row["prompt"] for row in rows],
        cell=CELL_PIXELS,
    )
    return storage.save_image(run / "samples" / CONTACT_SHEET_FILE, sheet)


def refresh_contact_sheet(run: Path) -> None:
    """Write the contact sheet again if there are samples, for a crash may have come between them and it."""
    if sampled_step_folders(run, MAX_COLUMNS):
        write_contact_sheet(run)


def _open_if_exists(file: Path) -> Image.Image | None:
    return decode_image(file) if file.exists() else None
