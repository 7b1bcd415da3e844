"""Data for the parts of an objective beside images with captions: masks, class images, and captions without
the trigger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.config.concepts import Concept
from lorakit.config.recipe import Recipe
from lorakit.core import dataset_paths, rng
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.words import has_word
from lorakit.data import caption_choice
from lorakit.data.items import ConceptRecords, DatasetItem, check_unchanged, load_training_records
from lorakit.data.subjects import concept_subjects, replace_triggers


@dataclass(frozen=True)
class CaptionedItem:
    """A caption and the image that it is trained with."""

    caption: str
    item: DatasetItem


def check_objective_data(recipe: Recipe, concepts: Sequence[ConceptRecords]) -> None:
    """Refuse a part of the objective for which no image of the dataset has what it needs."""
    records = [record for data in concepts for record in data.records]
    if recipe.objective.masked_loss and not any(record.mask for record in records):
        raise ConfigError(
            "objective.masked_loss weighs the loss by masks, but no image of the dataset has one",
            where=", ".join(str(data.concept.folder) for data in concepts),
            remedy="put a-masklabel.png beside a.jpg, or run `lorakit data mask`, and prepare again",
        )
    for trigger in recipe.triggers if recipe.objective.output_preservation else ():
        folders = [data for data in concepts if data.concept.trigger == trigger]
        if not any(has_word(text, trigger) for data in folders for text in data.captions):
            raise ConfigError(
                f"objective.output_preservation needs captions with the trigger {trigger!r}, and no image has"
                " one",
                where=", ".join(str(data.concept.folder) for data in folders),
                remedy="put the trigger into the captions, or leave objective.output_preservation out",
            )


def check_stratified_batch(recipe: Recipe, num_processes: int) -> None:
    """Refuse to stratify the timesteps of a step that has one image."""
    if recipe.objective.stratified_timesteps and recipe.effective_batch * num_processes == 1:
        raise ConfigError(
            "objective.stratified_timesteps spreads timesteps over the images of a step, and a step has one",
            where="objective.stratified_timesteps",
            remedy="raise train.batch_size or train.accumulate",
        )


def load_class_records(recipe: Recipe, concept: Concept) -> ConceptRecords:
    """Read the records of a folder of class images, none of which may show a subject."""
    data = ConceptRecords(concept, load_training_records(concept.folder))
    check_unchanged(concept.folder, data.records)
    for record in data.records:
        for trigger in recipe.triggers:
            if any(has_word(caption.text, trigger) for caption in record.captions):
                raise DataError(
                    f"a class image's caption has the trigger {trigger!r}, so it would teach the class as the"
                    " subject",
                    where=str(dataset_paths.file_path(concept.folder, record.file)),
                    remedy="take the word out of the caption, or move the image to the dataset",
                )
    return data


def class_image_seed(seed: int) -> int:
    """Return the seed of the order and captions of class images."""
    return rng.derive_seed(seed, "class images")


def kept_words(recipe: Recipe) -> tuple[str, ...]:
    """Return the words whose tags are never left out: what the run teaches."""
    token = (recipe.textual_inversion.token,) if recipe.textual_inversion else ()
    return (*recipe.triggers, *token)


def used_captions(item: DatasetItem) -> list[str]:
    """Return the captions of an item that are used, as they are written."""
    use, captions = item.caption_use, item.record.captions
    shares = caption_choice.caption_shares(captions, use)
    pairs = [pair for pair in zip(captions, shares, strict=True) if pair[1]] or [(captions[0], 1.0)]
    return [caption_choice.caption_as_written(caption.text, use) for caption, _ in pairs]


def replace_trigger(recipe: Recipe, caption: str) -> str | None:
    """The caption with class nouns in place of triggers; None when it has no trigger."""
    replaced = replace_triggers(caption, concept_subjects(recipe.concepts))
    return None if replaced == caption else replaced


def extra_captions(recipe: Recipe, items: Sequence[DatasetItem]) -> list[CaptionedItem]:
    """The captions that training encodes beside the dataset's own: empty, without the trigger, a slider's."""
    captions = [CaptionedItem("", item) for item in items if item.caption_use.caption_dropout]
    if recipe.objective.output_preservation:
        texts = [(text, item) for item in items for text in used_captions(item)]
        pairs = [(replace_trigger(recipe, text), item) for text, item in texts]
        captions += [CaptionedItem(text, item) for text, item in pairs if text is not None]
    if recipe.slider:
        captions += [CaptionedItem(text, item) for item in items for text in recipe.slider.prompts]
    return captions
