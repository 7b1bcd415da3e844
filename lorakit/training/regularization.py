"""What a run needs of its dataset, besides pictures with captions, for the parts of its objective: masks,
captions without the trigger, images of the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import prompts
from lorakit.data.items import DatasetItem, check_unchanged, load_training_records
from lorakit.manifest import Record


def check_objective_data(recipe: Recipe, records: Sequence[Record]) -> None:
    """Refuse a part of the objective for which no picture has what it needs."""
    if recipe.objective.mask and not any(record.mask for record in records):
        raise ConfigError(
            "objective.mask weighs the loss by masks, but no picture of the dataset has one",
            where=str(recipe.dataset),
            remedy="lay a-masklabel.png beside a.jpg, or run `lorakit data mask`, and prepare again",
        )
    captions = [caption.text for record in records for caption in record.captions]
    if recipe.objective.preserve and not any(replace_trigger(recipe, text) for text in captions):
        raise ConfigError(
            f"objective.preserve needs captions with the trigger {recipe.trigger!r}, and no picture has one",
            where=str(recipe.dataset),
            remedy="put the trigger into the captions, or leave objective.preserve out",
        )


def check_stratified_batch(recipe: Recipe, processes: int) -> None:
    """Refuse to spread noise levels over the images of a step that has one."""
    if recipe.objective.stratified and recipe.effective_batch * processes == 1:
        raise ConfigError(
            "objective.stratified spreads noise levels over the images of a step, and a step has one",
            where="objective.stratified",
            remedy="raise train.batch_size or train.accumulate",
        )


def load_class_records(recipe: Recipe, folder: Path) -> list[Record]:
    """The records of the class images, none of which may be the subject."""
    records = load_training_records(folder)
    check_unchanged(folder, records)
    for record in records:
        if recipe.trigger and any(prompts.has_word(c.text, recipe.trigger) for c in record.captions):
            raise DataError(
                f"a class image's caption has the trigger {recipe.trigger!r}, so it would teach the class as"
                " the subject",
                where=str(folder / record.file),
                remedy="take the word out of the caption, or move the picture to the dataset",
            )
    return records


def replace_trigger(recipe: Recipe, caption: str) -> str | None:
    """The caption with the class noun for the trigger; None when it has no trigger."""
    changed = prompts.Subject(recipe.trigger, recipe.class_noun).plain(caption)
    return None if changed == caption else changed


def extra_captions(recipe: Recipe, items: Sequence[DatasetItem]) -> list[tuple[str, DatasetItem]]:
    """The captions, besides the dataset's own, that training meets, each with its picture."""
    wanted = [("", item) for item in items] if recipe.objective.caption_dropout else []
    if recipe.objective.preserve:
        changed = [(replace_trigger(recipe, c.text), item) for item in items for c in item.record.captions]
        wanted += [(text, item) for text, item in changed if text is not None]
    if recipe.slider:
        wanted += [(text, item) for item in items for text in recipe.slider.poles]
    return wanted
