"""The captions of a run whose tags change with each use.

Every choice is keyed, so that all texts of a run are known before its first step. They are encoded once, like
all others, and the text encoders do not stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorakit.config.recipe import Recipe
from lorakit.data import batch_sampler
from lorakit.data.dataset import item_choices, sample_caption
from lorakit.data.items import DatasetItem
from lorakit.training import regularization
from lorakit.training.regularization import CaptionedItem
from lorakit.training.run_plan import TrainingPlan


@dataclass(frozen=True)
class CaptionStream:
    """The images of a run with their repeats, and its positions in the stream of samples."""

    recipe: Recipe
    items: Sequence[DatasetItem]
    class_items: Sequence[DatasetItem]
    positions: range

    def varied_captions(self) -> Iterator[CaptionedItem]:
        """Yield the captions with an order of tags of their own, in the order of their uses."""
        seed = self.recipe.train.seed
        yield from self._varied(self.items, seed)
        yield from self._varied(self.class_items, regularization.class_image_seed(seed))

    def _varied(self, items: Sequence[DatasetItem], seed: int) -> Iterator[CaptionedItem]:
        choices = item_choices(items)
        if not any(any(choice.varied) for choice in choices):
            return
        kept_words = regularization.kept_words(self.recipe)
        for position in self.positions:
            sample = batch_sampler.sample_at(position, choices, seed)
            if sample.tag_seed is None:
                continue
            item = items[sample.image_index]
            text = sample_caption(item, sample, kept_words)
            yield CaptionedItem(text, item)
            if self.recipe.objective.output_preservation:
                replaced = regularization.replace_trigger(self.recipe, text)
                if replaced is not None:
                    yield CaptionedItem(replaced, item)


def caption_stream(recipe: Recipe, plan: TrainingPlan, num_processes: int) -> CaptionStream:
    """Return the stream of captions of a run with this number of processes."""
    items = with_repeats(plan.split.train)
    total_batch_size = recipe.effective_batch * num_processes
    start = batch_sampler.first_position(plan.input_hashes.get("init_from"), len(items), total_batch_size)
    positions = range(start, start + recipe.train.steps * total_batch_size)
    return CaptionStream(recipe, items, with_repeats(plan.class_image_items), positions)


def with_repeats(items: Sequence[DatasetItem]) -> list[DatasetItem]:
    """Return each item as often as an epoch contains it."""
    return [item for item in items for _ in range(item.repeats)]
