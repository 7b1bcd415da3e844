"""Sentences about the judges of an evaluation: replaced models, long prompts, questions without a model."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.data.prompts import Prompt
from lorakit.models.clip_score import ClipScorer


def judge_notes(notes: Sequence[str], clip: ClipScorer, prompts: Sequence[Prompt]) -> list[str]:
    """Return the notes of the loaded judges, and those on the prompts that they scored."""
    return [*notes, *_long_prompts(clip, prompts)]


def _long_prompts(clip: ClipScorer, prompts: Sequence[Prompt]) -> list[str]:
    description = clip.describe()
    by_sentence, truncated = (
        set(description.get(name, ())) for name in ("texts_by_sentence", "truncated_texts")
    )
    texts = [prompt.score_text for prompt in prompts]
    long = sum(text in by_sentence for text in texts)
    cut = sum(bool(truncated & set(clip.parts.get(text, [text]))) for text in texts) if truncated else 0
    verb, pronoun = ("is", "it is") if long == 1 else ("are", "they are")
    sentences = []
    if long:
        sentences.append(
            f"{long} of {len(texts)} prompts {verb} longer than CLIP reads; {pronoun} scored by sentence."
        )
    if cut:
        sentences.append(
            f"Of {cut} of {len(texts)} prompts CLIP reads only a part, because a sentence is too long for it."
        )
    return sentences
