"""The export of a run's checkpoint with everything that galleries show: thumbnail, base model, model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorakit.adapters.formats import read_adapter_file
from lorakit.adapters.formats.export import export_loaded_adapter
from lorakit.adapters.formats.metadata import with_public_details
from lorakit.adapters.formats.strength import with_strength
from lorakit.adapters.formats.verify import ExportedFile
from lorakit.adapters.publishing.card_facts import CardFacts, read_card_facts
from lorakit.adapters.publishing.model_card import GRID_FILE, CardContents, CardFile, format_card, write_card
from lorakit.adapters.publishing.sample_images import (
    SampleImage,
    find_sample_images,
    sample_grid,
    thumbnail,
)
from lorakit.adapters.sources import AdapterSource
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError, first_line
from lorakit.core.progress import print_line


def export_source(
    source: AdapterSource,
    consumers: str | Sequence[str],
    out: Path,
    *,
    base: Path | None = None,
    allow_untrained: bool = False,
    family: str | None = None,
    max_rank: int | None = None,
    include_names: bool = False,
    dtype: str = "fp16",
    allow_loss: bool = False,
    apply_strength: bool = False,
    card: bool = True,
    facts: CardFacts | None = None,
) -> list[ExportedFile]:
    """Export an adapter for consumers or "all" into the folder `out`: see `export_loaded_adapter`.

    A file that serves several of the consumers is written once.

    An adapter of a run has a thumbnail in its metadata, and README.md with a grid of samples beside it,
    unless `card` is False; `facts` are those of the run, if they were read already. Raises ConfigError for a
    request that cannot be met, NumericError for an adapter without effect.
    """
    facts = facts or (_facts(source) if card else None)
    images = find_sample_images(facts) if facts else []
    path = source.weights_file if source.run else source.path
    adapter = read_adapter_file(path, family, allow_embedding_only=True)
    adapter = with_strength(adapter, source.strength, apply=apply_strength)
    if facts:
        adapter = with_public_details(adapter, thumbnail=thumbnail(images), base=facts.base)
    exported: dict[Path, ExportedFile] = {}
    for consumer in [consumers] if isinstance(consumers, str) else consumers:
        if any(consumer in one.consumers for one in exported.values()):
            continue
        files = export_loaded_adapter(
            adapter,
            consumer,
            out,
            base=base,
            allow_untrained=allow_untrained,
            max_rank=max_rank,
            include_names=include_names,
            dtype=dtype,
            allow_loss=allow_loss,
        )
        exported |= {one.path: one for one in files}
    if card and facts and exported:
        folder = out.parent if out.suffix == ".safetensors" else out
        _write_card(facts, images, list(exported.values()), folder, apply_strength)
    return list(exported.values())


def _facts(source: AdapterSource) -> CardFacts | None:
    """Return the facts of a run's adapter; None for another file, and with a line for a run without them."""
    if source.run is None:
        return None
    try:
        return read_card_facts(source)
    except ConfigError as error:
        print_line(f"note: no model card: {first_line(error)}")
        return None


def _write_card(
    facts: CardFacts,
    images: Sequence[SampleImage],
    exported: Sequence[ExportedFile],
    folder: Path,
    is_strength_applied: bool,
) -> None:
    """Write README.md and the grid of samples into the folder of exports."""
    grid = sample_grid(images)
    contents = CardContents(
        card_files(exported), has_grid=grid is not None, is_strength_applied=is_strength_applied
    )
    if write_card(folder, format_card(facts, contents)) and grid is not None:
        storage.save_image(folder / GRID_FILE, grid)


def card_files(exported: Sequence[ExportedFile]) -> list[CardFile]:
    """Return exported files as a card lists them."""
    return [CardFile(one.path.name, one.consumers, checksums.sha256_file(one.path)) for one in exported]
