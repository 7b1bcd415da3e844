"""The contact sheet of an evaluation: two variants side by side, the best prompts first."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lorakit import reports
from lorakit.evaluation.report.ranking import rank_prompts
from lorakit.evaluation.report.variants import SampleImages
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

SHEET_PROMPTS, SHEET_SEEDS, SHEET_CELL = 24, 8, 128


def evaluation_contact_sheet(
    evaluation: Evaluation, base: VariantScores | None, variant: VariantScores, root: Path
) -> Image.Image:
    """Return a sheet with a row for each prompt: the base model's images if any, then the variant's."""
    images = SampleImages(root)
    prompts = [one.prompt for one in rank_prompts(evaluation, variant)][:SHEET_PROMPTS]
    width = max(min(len(prompt.seeds), SHEET_SEEDS) for prompt in prompts)
    cells: list[list[Image.Image | None]] = []
    for prompt in prompts:
        row: list[Image.Image | None] = []
        for one in [base, variant] if base else [variant]:
            files = [one.files.get(SampleKey(prompt.id, seed)) for seed in prompt.seeds[:SHEET_SEEDS]]
            opened = [images.open(file) if file else None for file in files]
            gap = [None] if row else []
            row += [*gap, *opened, *[None] * (width - len(opened))]
        cells.append(row)
    blank = [""] * (width - 1)
    heads = [base.name, *blank, "", variant.name, *blank] if base else [variant.name, *blank]
    names = [prompt.prompt for prompt in prompts]
    return reports.contact_sheet(cells, column_heads=heads, row_heads=names, cell=SHEET_CELL)
