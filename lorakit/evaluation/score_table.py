"""Measured scores of an evaluation as plain values: scores.json, and means and intervals computed from it.

A variant is one way to generate the images: the base model, a checkpoint at a strength, or another
generator. All variants share prompts and seeds, so their scores are compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.core.shares import share_difference, share_interval
from lorakit.core.statistics import Interval, mean_interval
from lorakit.core.words import has_word
from lorakit.data.prompts import PROMPT_SETTINGS, Prompt, Role, prompt_to_row
from lorakit.data.questions import parse_questions
from lorakit.evaluation.copies import CopyScale, TrainingMatch
from lorakit.evaluation.metric_table import METRICS, metric_spec
from lorakit.evaluation.references import ReferenceTable
from lorakit.evaluation.run_facts import RunFacts
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.variant_origin import VariantOrigin

SCORES_FILE = "scores.json"
FORMAT_VERSION = 2
BASE = "base"
_ROW_KEYS = ("prompt_id", "seed", "file")  # of an image in scores.json; all other keys are scores and texts


@dataclass
class VariantScores:
    """Scores of one variant: for each image, for each prompt, and for all images together."""

    name: str
    """`base`, `step-200`, `step-200@0.7`, or the name of another generator's folder."""
    step: int | None = None
    strength: float | None = None
    files: dict[SampleKey, str] = field(default_factory=dict)
    """Paths relative to the evaluation's folder."""
    scores: dict[str, dict[SampleKey, float]] = field(default_factory=dict)
    per_prompt: dict[str, dict[str, float]] = field(default_factory=dict)
    set_metrics: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    """"validation" and "train": the loss of each image, the same images for every variant."""
    reference_similarity: dict[SampleKey, list[float]] = field(default_factory=dict)
    """Cosine of each image with each unit of `Evaluation.references` (U,), by the encoder of fidelity."""
    nearest_train_images: dict[SampleKey, str] = field(default_factory=dict)
    """The most similar training image of each image."""
    training_matches: dict[SampleKey, TrainingMatch] = field(default_factory=dict)
    """The evidence for or against each image being a copy; empty with fewer than three training images."""
    image_statistics: dict[SampleKey, list[float]] = field(default_factory=dict)
    """Saturation, contrast and detail of each image (`metrics/image_statistics.py`)."""
    clip_choices: dict[SampleKey, str] = field(default_factory=dict)
    """The text that CLIP ranks first for each image."""
    question_scores: dict[SampleKey, list[float]] = field(default_factory=dict)
    """The probability of the right answer to each question of the image's prompt."""
    origin: VariantOrigin | None = None
    """The adapter file; None for the base model and for the images of another generator."""
    stopped_early: bool = False
    """True if a race ended before all prompts were sampled, because it could not be the best any more."""
    shares_noise: bool | None = True
    """False if its images do not start from the noise of the base model's; None if that is not known."""

    @property
    def is_guest(self) -> bool:
        """True for an adapter of another origin than the run."""
        return self.origin is not None and self.origin.is_guest

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        texts = {"nearest_train_image": self.nearest_train_images, "clip_choice": self.clip_choices}
        rows = []
        for key, file in self.files.items():
            row: dict[str, Any] = {"prompt_id": key.prompt_id, "seed": key.seed, "file": file}
            row |= {name: values[key] for name, values in self.scores.items() if key in values}
            row |= {name: values[key] for name, values in texts.items() if key in values}
            row |= {name: values[key] for name, values in self._lists().items() if key in values}
            if key in self.training_matches:
                row["training_match"] = self.training_matches[key].to_json()
            rows.append(row)
        return {
            "name": self.name,
            "step": self.step,
            "strength": self.strength,
            "set_metrics": self.set_metrics,
            "per_prompt": self.per_prompt,
            "losses": self.losses,
            "origin": self.origin.to_json() if self.origin else None,
            "stopped_early": self.stopped_early,
            "shares_noise": self.shares_noise,
            "images": rows,
        }

    def _lists(self) -> dict[str, dict[SampleKey, list[float]]]:
        """Return the lists of numbers of each image."""
        return {
            "reference_similarity": self.reference_similarity,
            "question_scores": self.question_scores,
            "image_statistics": self.image_statistics,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VariantScores:
        """Read the values that `to_json` writes."""
        variant = cls(value["name"], value["step"], value["strength"])
        variant.set_metrics, variant.per_prompt = dict(value["set_metrics"]), dict(value["per_prompt"])
        variant.losses = dict(value["losses"])
        variant.origin = VariantOrigin.from_json(value["origin"])
        variant.stopped_early, variant.shares_noise = value["stopped_early"], value["shares_noise"]
        texts = {"nearest_train_image": variant.nearest_train_images, "clip_choice": variant.clip_choices}
        lists = variant._lists()
        for row in value["images"]:
            key = SampleKey(row["prompt_id"], row["seed"])
            variant.files[key] = row["file"]
            for name, score in row.items():
                if name in texts:
                    texts[name][key] = score
                elif name in lists:
                    lists[name][key] = list(score)
                elif name == "training_match":
                    variant.training_matches[key] = TrainingMatch.from_json(score)
                elif name not in _ROW_KEYS:
                    variant.scores.setdefault(name, {})[key] = score
        return variant


@dataclass
class Evaluation:
    """All variants, the base model first if there is one, and the anchors and settings of their scores."""

    title: str
    prompts: list[Prompt]
    variants: list[VariantScores]
    triggers: tuple[str, ...] = ()
    """The trigger words of the subjects."""
    fidelity_metric: str = "clip_i"
    """The metric that fidelity is computed from: `dino_i` with an image encoder, else `clip_i`."""
    references: ReferenceTable | None = None
    """The reference images and their similarities to each other, by the fidelity metric's encoder."""
    copy_scale: CopyScale | None = None
    """The typical similarities of distinct training images; None if there are fewer than three."""
    reference_statistics: list[list[float]] = field(default_factory=list)
    """Saturation, contrast and detail of each reference image."""
    settings: dict[str, Any] = field(default_factory=dict)
    facts: RunFacts | None = None
    """Facts of the run that explain a result."""
    details: list[tuple[str, str]] = field(default_factory=list)
    """Rows of the report's section about the run."""
    train_images: str | None = None
    """Folder of the training images, relative to the evaluation's folder."""
    notes: list[str] = field(default_factory=list)
    """Scores that could not be measured, with the reason."""
    last_step: int | None = None
    """The newest step of the run when it was evaluated."""

    @property
    def base(self) -> VariantScores | None:
        """The base model's variant."""
        return next((variant for variant in self.variants if variant.name == BASE), None)

    @property
    def adapter_variants(self) -> list[VariantScores]:
        """The variants to select from, ordered by step and strength: without base model, guests and variants
        that a race has stopped.
        """
        candidates = [v for v in self.variants if v.name != BASE and not v.is_guest and not v.stopped_early]
        return sorted(candidates, key=lambda variant: (variant.step or 0, variant.strength or 1))

    @property
    def guests(self) -> list[VariantScores]:
        """The variants of other origin than the run, which are compared and never selected."""
        return [variant for variant in self.variants if variant.is_guest]

    @property
    def stopped_variants(self) -> list[VariantScores]:
        """The variants that a race has stopped: they have images for its first prompts only."""
        return [variant for variant in self.variants if variant.stopped_early]

    def prompts_of_role(self, *roles: Role) -> list[Prompt]:
        """Return the prompts that have one of the roles."""
        return [prompt for prompt in self.prompts if prompt.role(self.triggers) in roles]

    def prompt_means(
        self, variant: VariantScores, name: str, prompts: Sequence[Prompt]
    ) -> NDArray[np.float64]:
        """Return one value for each prompt (G,), the mean over its seeds; NaN if nothing was measured."""
        if name in variant.per_prompt:
            values = variant.per_prompt[name]
            return np.array([values.get(prompt.id, math.nan) for prompt in prompts])
        scores = variant.scores.get(name, {})
        rows = []
        for prompt in prompts:
            keys = [SampleKey(prompt.id, seed) for seed in prompt.seeds]
            rows.append([scores[key] for key in keys if key in scores] or [math.nan])
        return np.array([sum(row) / len(row) for row in rows])

    def prompt_trigger(self, prompt: Prompt) -> str | None:
        """Return the trigger that a prompt has; None if it has none or several."""
        present = [trigger for trigger in self.triggers if has_word(prompt.prompt, trigger)]
        return present[0] if len(present) == 1 else None

    def reference_means(self, variant: VariantScores, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
        """Return the similarity (G, U) of each prompt's images to each reference unit, mean over its seeds.

        NaN where an image was not measured. Units of other subjects are included: `prompt_units` says which
        ones count for a prompt.
        """
        num_units = len(self.references.units) if self.references else 0
        rows = []
        for prompt in prompts:
            keys = [SampleKey(prompt.id, seed) for seed in prompt.seeds]
            known = [variant.reference_similarity[key] for key in keys if key in variant.reference_similarity]
            rows.append(np.mean(known, axis=0) if known else np.full(num_units, math.nan))
        return np.array(rows).reshape(len(prompts), num_units)

    def prompt_units(self, prompt: Prompt) -> list[int]:
        """Return the reference units that the fidelity of a prompt's images is measured with."""
        return self.references.fidelity_units(self.prompt_trigger(prompt)) if self.references else []

    def interval(
        self, variant: VariantScores, name: str, prompts: Sequence[Prompt], level: float = 0.95
    ) -> Interval | None:
        """Return the mean over prompts with its interval, or None if no prompt was measured."""
        if rows := self._share_rows([variant], name, prompts):
            return share_interval(rows.values[0], rows.groups, level=level)
        return column_interval(self.prompt_means(variant, name, prompts), level)

    def paired_difference(
        self,
        first: VariantScores,
        second: VariantScores,
        name: str,
        prompts: Sequence[Prompt],
        level: float = 0.95,
    ) -> Interval | None:
        """Return the mean of `second` minus `first` over prompts, paired, with its interval."""
        if rows := self._share_rows([first, second], name, prompts):
            before, after = rows.values
            return share_difference(before, after, rows.groups, level=level)
        difference = self.prompt_means(second, name, prompts) - self.prompt_means(first, name, prompts)
        return column_interval(difference, level)

    def _share_rows(
        self, variants: Sequence[VariantScores], name: str, prompts: Sequence[Prompt]
    ) -> _ShareRows | None:
        """Return the values of the images that all variants have, if the metric is a share of 0 to 100 %."""
        if not metric_spec(name).is_share or any(name in variant.per_prompt for variant in variants):
            return None
        scores = [variant.scores.get(name, {}) for variant in variants]
        keys = [SampleKey(prompt.id, seed) for prompt in prompts for seed in prompt.seeds]
        keys = [key for key in keys if all(key in own for own in scores)]
        values = [[own[key] for key in keys] for own in scores]
        return _ShareRows(values, [key.prompt_id for key in keys]) if keys else None

    def metric_names(self) -> list[str]:
        """Return the metrics per image or prompt that at least one variant has, in the order of reports."""
        names = {name for variant in self.variants for name in (*variant.scores, *variant.per_prompt)}
        order = list(METRICS)
        return sorted(names, key=lambda name: (order.index(name.partition("@")[0]), name))

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        return {
            "format_version": FORMAT_VERSION,
            "title": self.title,
            "triggers": list(self.triggers),
            "prompts": [
                {k: v for k, v in prompt_to_row(p).items() if k != "image"} | {"role": p.role(self.triggers)}
                for p in self.prompts
            ],
            "variants": [variant.to_json() for variant in self.variants],
            "fidelity_metric": self.fidelity_metric,
            "references": self.references.to_json() if self.references else None,
            "copy_scale": self.copy_scale.to_json() if self.copy_scale else None,
            "reference_statistics": self.reference_statistics,
            "settings": self.settings,
            "facts": self.facts.to_json() if self.facts else None,
            "details": [list(row) for row in self.details],
            "train_images": self.train_images,
            "notes": self.notes,
            "last_step": self.last_step,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        """Read the values that `to_json` writes."""
        return cls(
            title=value["title"],
            prompts=[_prompt_from_json(row) for row in value["prompts"]],
            variants=[VariantScores.from_json(variant) for variant in value["variants"]],
            triggers=tuple(value["triggers"]),
            fidelity_metric=value["fidelity_metric"],
            references=ReferenceTable.from_json(value["references"]) if value["references"] else None,
            copy_scale=CopyScale.from_json(value["copy_scale"]) if value["copy_scale"] else None,
            reference_statistics=[list(row) for row in value["reference_statistics"]],
            settings=dict(value["settings"]),
            facts=RunFacts.from_json(value["facts"]) if value["facts"] else None,
            details=[(name, text) for name, text in value["details"]],
            train_images=value["train_images"],
            notes=list(value["notes"]),
            last_step=value["last_step"],
        )


def _prompt_from_json(row: Mapping[str, Any]) -> Prompt:
    text = row["prompt"]
    seeds, score_text = tuple(row["seeds"]), row.get("score_text", text)
    questions = parse_questions(row.get("questions"), row["id"])
    negative = row.get("negative", "")
    settings: dict[str, Any] = {name: row.get(name) for name in PROMPT_SETTINGS}
    return Prompt(row["id"], text, score_text, negative, seeds, row["kind"], questions=questions, **settings)


def column_interval(column: NDArray[np.float64], level: float = 0.95) -> Interval | None:
    """Return the mean of the finite values of `column` (G,), one a prompt, or None if there are none."""
    known = column[np.isfinite(column)]
    return mean_interval(known, level=level) if len(known) else None


@dataclass(frozen=True)
class _ShareRows:
    """Values of the same images for each variant, and the prompt of each image."""

    values: list[list[float]]
    groups: list[str]


def find_evaluation_folder(folder: str | Path) -> Path:
    """Return the folder that holds scores.json: `folder` itself, or the evaluation of the run in `folder`.

    Raises DataError if there is none.
    """
    root = Path(folder)
    for candidate in (root, root / "eval"):
        if (candidate / SCORES_FILE).is_file():
            return candidate
    remedy = "create it with `lorakit eval run RUN` or `lorakit eval score FOLDER`"
    raise DataError(f"the folder has no {SCORES_FILE}", where=str(root), remedy=remedy)


def load_evaluation(folder: str | Path) -> Evaluation:
    """Read the evaluation in `folder`, or that of the run in `folder`; DataError if it cannot be read."""
    file = find_evaluation_folder(folder) / SCORES_FILE
    value = storage.read_json(file)
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        raise DataError("written by another version of lorakit", where=str(file), remedy="evaluate again")
    try:
        return Evaluation.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not an evaluation: {error!r}", where=str(file), remedy="evaluate again") from error
