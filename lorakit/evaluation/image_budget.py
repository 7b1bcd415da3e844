"""An evaluation within a number of images: fewer seeds first, then fewer checkpoints.

Seeds of a prompt tell the least about a variant, because the prompt is the unit of the statistics. Two
remain, so that diversity can be measured; then checkpoints are left out evenly, and the last one stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorakit.core.errors import ConfigError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.checkpoints import CheckpointVariant

MIN_SEEDS = 2


@dataclass(frozen=True)
class Budget:
    """Prompts and variants whose images are within the limit, and a note about what was left out."""

    prompts: list[Prompt]
    variants: list[CheckpointVariant]
    note: str | None


def fit_budget(
    prompts: Sequence[Prompt], variants: Sequence[CheckpointVariant], num_guests: int, max_images: int
) -> Budget:
    """Leave out seeds, then variants, until base model, variants and guests have at most `max_images` images.

    Raises ConfigError if one variant with `MIN_SEEDS` seeds has more.
    """
    num_seeds = max(len(prompt.seeds) for prompt in prompts)
    kept, others = list(prompts), 1 + num_guests
    while _count(kept) * (others + len(variants)) > max_images and num_seeds > MIN_SEEDS:
        num_seeds -= 1
        kept = [replace(prompt, seeds=prompt.seeds[:num_seeds]) for prompt in prompts]
    possible = max_images // _count(kept) - others
    if possible < 1:
        least = _count(kept) * (others + 1)
        raise ConfigError(
            f"one checkpoint needs {least} images, the base model's included",
            where=f"--max-images {max_images}",
            remedy=f"use --max-images {least} or more, or a shorter prompt file",
        )
    chosen = _thin_out(variants, possible)
    return Budget(kept, chosen, _note(prompts, kept, variants, chosen, max_images))


def _count(prompts: Sequence[Prompt]) -> int:
    return sum(len(prompt.seeds) for prompt in prompts)


def _thin_out(variants: Sequence[CheckpointVariant], count: int) -> list[CheckpointVariant]:
    """Return at most `count` variants in even distances, the last one among them."""
    if count >= len(variants):
        return list(variants)
    last = len(variants) - 1
    if count == 1:
        return [variants[last]]
    indices = sorted({round(number * last / (count - 1)) for number in range(count)})
    return [variants[index] for index in indices]


def _note(
    prompts: Sequence[Prompt],
    kept: Sequence[Prompt],
    variants: Sequence[CheckpointVariant],
    chosen: Sequence[CheckpointVariant],
    max_images: int,
) -> str | None:
    parts = []
    if _count(kept) < _count(prompts):
        seeds = max(len(prompt.seeds) for prompt in kept)
        parts.append(f"{seeds} instead of {max(len(prompt.seeds) for prompt in prompts)} seeds a prompt")
    left_out = [variant.name for variant in variants if variant not in chosen]
    if left_out:
        parts.append(f"without {', '.join(left_out)}")
    return f"At most {max_images} images (--max-images): {'; '.join(parts)}." if parts else None
