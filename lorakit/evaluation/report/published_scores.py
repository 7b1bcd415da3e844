"""The scores of the chosen variant as rows of text, for model cards, with intervals."""

from __future__ import annotations

from collections.abc import Iterator

from lorakit.data.prompts import Role
from lorakit.evaluation.metric_table import metric_spec
from lorakit.evaluation.report.number_format import NO_VALUE, format_interval, format_percent_interval
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection

_ROLES: dict[Role, str] = {"subject": "of the subject", "class": "of its class", "unrelated": "unrelated"}
_SUMMARIES = {
    "fidelity": ("Fidelity", "0 % is the base model, 100 % other images of the subject"),
    "prompt_adherence": ("Prompt adherence", "100 % is the base model"),
    "quality": ("Quality", "harmonic mean of fidelity and prompt adherence"),
}
_SUBJECT_METRICS = ("clip_t", "dino_i", "clip_i", "clip_accuracy", "questions", "vqascore", "diversity")
_OTHER_METRICS = ("clip_t", "drift")


def published_scores(
    evaluation: Evaluation, selection: Selection, variant: VariantScores
) -> list[dict[str, str]]:
    """Return the rows: score, prompts, base, adapter, change and meaning, all as text."""
    return [*_summary_rows(selection), *_metric_rows(evaluation, variant)]


def _summary_rows(selection: Selection) -> Iterator[dict[str, str]]:
    for name, (title, meaning) in _SUMMARIES.items():
        if (interval := getattr(selection, name)) is not None:
            yield {
                "score": title,
                "prompts": f"{interval.num_prompts} {_ROLES['subject']}",
                "base": NO_VALUE,
                "adapter": format_percent_interval(interval),
                "change": NO_VALUE,
                "meaning": meaning,
            }


def _metric_rows(evaluation: Evaluation, variant: VariantScores) -> Iterator[dict[str, str]]:
    measured = set(evaluation.metric_names())
    for role, label in _ROLES.items():
        prompts = evaluation.prompts_of_role(role)
        names = _SUBJECT_METRICS if role == "subject" else _OTHER_METRICS
        for name in names if prompts else ():
            after = evaluation.interval(variant, name, prompts) if name in measured else None
            if after is None:
                continue
            metric, base = metric_spec(name), evaluation.base
            before = evaluation.interval(base, name, prompts) if base else None
            change = evaluation.paired_difference(base, variant, name, prompts) if base and before else None
            yield {
                "score": metric.title,
                "prompts": f"{len(prompts)} {label}",
                "base": format_interval(before, metric),
                "adapter": format_interval(after, metric),
                "change": format_interval(change, metric, signed=True),
                "meaning": metric.description,
            }
