"""Sentences about the judges of an evaluation: replaced models, long prompts, what no model measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorakit.data.prompts import Prompt
from lorakit.evaluation.scoring_inputs import JudgeModels, ReferenceImages


def judge_notes(
    judges: JudgeModels, references: ReferenceImages | None, prompts: Sequence[Prompt]
) -> list[str]:
    """Return sentences on the loaded judges, and on what they did not measure."""
    notes = [*judges.notes, *long_prompt_notes(judges.clip.describe(), prompts)]
    questions = sum(bool(prompt.questions) for prompt in prompts)
    if questions and not any(scorer.name == "questions" for scorer in judges.prompt_scorers):
        notes.append(
            f"The questions of {_of(questions, len(prompts))} are not answered: --metric questions=MODEL asks"
            " a vision-language model."
        )
    if references and references.cut_outs and not judges.mask_model:
        notes.append(
            "The dataset has masks, but fidelity counts the background: name a model that masks the samples"
            " with --mask-model."
        )
    return notes


def long_prompt_notes(clip: dict[str, Any], prompts: Sequence[Prompt]) -> list[str]:
    """Return sentences on texts beyond the context of a CLIP, by its description."""
    texts = [prompt.score_text for prompt in prompts]
    by_sentence = set(clip.get("texts_by_sentence", ()))
    long = sum(text in by_sentence for text in texts)
    cut = sum(any(part in text for part in clip.get("truncated_texts", ())) for text in texts)
    notes = []
    if long:
        verb, pronoun = ("is", "it is") if long == 1 else ("are", "they are")
        notes.append(f"{_of(long, len(texts))} {verb} longer than CLIP reads; {pronoun} scored by sentence.")
    if cut:
        verb = "has" if cut == 1 else "have"
        notes.append(f"{_of(cut, len(texts))} {verb} a sentence of which CLIP reads only the beginning.")
    return notes


def _of(count: int, total: int) -> str:
    return f"{count} of {total} prompts"
