"""Facts of a run for its model card, read from the files in its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit import manifest
from lorakit.adapters.files import read_adapter_metadata
from lorakit.adapters.publishing.private_data import PrivateData, read_private_data
from lorakit.adapters.selection_record import ReadSelection, SelectionRecord, read_selection
from lorakit.adapters.sources import RECIPE_FILE, AdapterSource, read_last_step
from lorakit.config.recipe import Recipe, load_recipe
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError, LorakitError
from lorakit.models import base_model, families

RUN_FILE = "run.json"
NO_EVALUATION = "This run was not evaluated."


@dataclass(frozen=True)
class DataSummary:
    """Numbers of a dataset; nothing of its content."""

    images: int | None = None
    held_out: int = 0
    videos: int = 0
    captions: Mapping[str, int] = field(default_factory=dict)
    """Number of captions by source."""
    sizes: tuple[tuple[str, int], ...] = ()
    """Sizes in pixels (`768x1024`) with the number of images, the most frequent first."""
    masks: int = 0


@dataclass(frozen=True)
class CardFacts:
    """Everything that a model card says. `evaluation` is None for a run without a current evaluation."""

    recipe: Recipe
    metadata: Mapping[str, Any]
    """Metadata of the adapter's file."""
    source: AdapterSource
    adapter_sha256: str
    family_title: str
    license_of_base: str
    """A sentence about it."""
    base: str | None
    """Public name of the base model; None for a local one."""
    is_video: bool
    data: DataSummary
    evaluation: SelectionRecord | None
    no_evaluation: str
    """The reason why there is none."""
    private: PrivateData
    versions: Mapping[str, str]

    @property
    def trigger(self) -> str | None:
        """The trigger words that the captions taught."""
        text = self.metadata.get("trigger")
        return text if isinstance(text, str) and text else None

    @property
    def strength(self) -> float:
        """The strength to use the adapter with."""
        return self.source.strength

    def public_text(self, text: str) -> str | None:
        """Return a text unless it repeats training data."""
        return None if self.private.repeats(text) else text


def read_card_facts(source: AdapterSource) -> CardFacts:
    """Read the facts of a run's checkpoint. Raises ConfigError for an adapter that is not of a run."""
    if source.run is None:
        raise ConfigError(
            "a model card needs the run of the adapter",
            where=str(source.path),
            remedy="give the folder of a run, or RUN@STEP",
        )
    recipe = load_recipe(source.run / RECIPE_FILE)
    metadata = read_adapter_metadata(source.weights_file)
    record = _read_run_record(source.run)
    selection = read_selection(source.run, read_last_step(source.run))
    evaluation, why = _usable(selection, source)
    title, license_text, is_video = _family(str(metadata.get("family", "")))
    if base_model.is_embedded(recipe.base):
        license_text = "The base model is in the public domain (CC0)."
    return CardFacts(
        recipe=recipe,
        metadata=metadata,
        source=source,
        adapter_sha256=checksums.sha256_file(source.weights_file),
        family_title=title,
        license_of_base=license_text,
        base=base_model.public_name(recipe.base),
        is_video=is_video,
        data=_summarize(recipe, record),
        evaluation=evaluation,
        no_evaluation=why,
        private=read_private_data(recipe),
        versions=record.get("versions", {}),
    )


def _read_run_record(run: Path) -> dict[str, Any]:
    file = run / RUN_FILE
    value = storage.read_json(file) if file.is_file() else {}
    return value if isinstance(value, dict) else {}


def _usable(selection: ReadSelection, source: AdapterSource) -> tuple[SelectionRecord | None, str]:
    """Return the evaluation of exactly this checkpoint and strength, or None and the reason."""
    record = selection.record
    if record is None:
        return None, f"{NO_EVALUATION} {selection.problem}".strip() if selection.problem else NO_EVALUATION
    if selection.problem:
        return None, "Its evaluation is outdated: the run has changed since."
    if record.step is None:
        return None, f"Its evaluation could not select a checkpoint: {record.reason}."
    if record.step != source.step or (record.strength or 1.0) != source.strength:
        return None, "This checkpoint, at this strength, is not the one that its evaluation selected."
    return record, ""


def _family(name: str) -> tuple[str, str, bool]:
    try:
        family = families.get_family(name)
    except ConfigError:  # a family derived from a pipeline is not in the table
        return name, "The base model has its own.", False
    text = f"The base model has its own, for published models of this family: {family.license}."
    return family.title, text, family.is_video


def _summarize(recipe: Recipe, record: Mapping[str, Any]) -> DataSummary:
    """Count the images of a run; from its record alone if the dataset is gone."""
    concepts = [row for row in record.get("concepts", ()) if isinstance(row, dict)]
    held_out = sum(int(row.get("held_out", 0)) for row in concepts)
    images = record.get("num_images")
    try:
        records = [
            one for concept in recipe.concepts for one in manifest.load_manifest(concept.folder) if one.keep
        ]
    except (LorakitError, OSError):
        return DataSummary(images if isinstance(images, int) else None, held_out)
    sizes = Counter(f"{one.width}x{one.height}" for one in records)
    return DataSummary(
        images=images if isinstance(images, int) else len(records),
        held_out=held_out,
        videos=sum(one.video is not None for one in records),
        captions=dict(Counter(caption.source for one in records for caption in one.captions).most_common()),
        sizes=tuple(sizes.most_common()),
        masks=sum(one.mask is not None for one in records),
    )
