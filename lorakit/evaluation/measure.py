"""From pictures to an `Evaluation`: every score that the prompts, references and models at hand allow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorakit.core.errors import DataError
from lorakit.evaluation.feature_cache import (
    Features,
    FrameSource,
    PromptScorer,
    cached_features,
    cached_prompt_scores,
    frame_source,
    normalize_rows,
)
from lorakit.evaluation.metrics import feature_metrics
from lorakit.evaluation.metrics.image_encoders import ImageEncoder
from lorakit.evaluation.sample_files import SampleFile
from lorakit.evaluation.score_table import BASE, Evaluation, SampleKey, VariantScores
from lorakit.models import clip_score


@dataclass(frozen=True)
class JudgeModels:
    """The models that score; without an `eye`, CLIP's image tower takes its place."""

    clip: clip_score.ClipScorer
    eye: ImageEncoder | None = None
    detector: ImageEncoder | None = None
    """A copy detector (SSCD)."""
    extras: Sequence[PromptScorer] = ()

    def describe(self) -> dict[str, Any]:
        """Settings of every number, by whose it is."""
        named: dict[str, Any] = {"clip": self.clip.describe()}
        if self.eye:
            named["image model"] = self.eye.describe()
        if self.detector:
            named["copy detector"] = self.detector.describe()
        return named | {extra.name: extra.describe() for extra in self.extras}


@dataclass(frozen=True)
class ReferenceImages:
    """Pictures of the subject; `trained` tells which of them the adapter saw."""

    names: list[str]
    sources: list[FrameSource]
    trained: list[bool]
    folder: str | None = None
    """Where they lie, relative to the evaluation."""


@dataclass
class VariantSamples:
    """One arm before it is scored."""

    name: str
    pictures: list[SampleFile]
    step: int | None = None
    strength: float | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)


def score_variants(
    evaluation: Evaluation,
    arms: Sequence[VariantSamples],
    judges: JudgeModels,
    references: ReferenceImages | None,
    *,
    root: Path,
    alternatives: Mapping[str, Sequence[str]] | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Score the arms, one named "base" first if there is one, into `evaluation`, with the controls.

    `root` is the evaluation's folder, to which paths are relative. `alternatives` maps prompt ids to texts
    among which CLIP shall pick each picture's own. Raises DataError where an arm lacks a picture that others
    have: what is not paired is not compared.
    """
    _check_paired(arms)
    work = _ScoringContext(evaluation, judges, root, alternatives or {}, quiet)
    if references:
        work.refer_to(references)
    for taken in sorted(arms, key=lambda taken: taken.name != BASE):
        evaluation.arms.append(work.score(taken))
    evaluation.settings |= judges.describe()
    return evaluation


def _check_paired(arms: Sequence[VariantSamples]) -> None:
    keys = {taken.name: {picture.key for picture in taken.pictures} for taken in arms}
    whole = set().union(*keys.values())
    for name, own in keys.items():
        if missing := sorted(whole - own):
            shown = ", ".join(f"{prompt} seed {seed}" for prompt, seed in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            remedy = "make all sets with the same prompts and seeds"
            raise DataError(f"missing pictures: {shown}{more}", where=name, remedy=remedy)


class _ScoringContext:
    """What all arms share: the prompts' texts, the references, and the base's features to drift from."""

    def __init__(
        self,
        evaluation: Evaluation,
        judges: JudgeModels,
        root: Path,
        alternatives: Mapping[str, Sequence[str]],
        quiet: bool,
    ) -> None:
        self.evaluation, self.judges, self.root = evaluation, judges, root
        self.alternatives, self.quiet = alternatives, quiet
        prompts = evaluation.prompts
        self.rows = {prompt.id: row for row, prompt in enumerate(prompts)}
        self.roles = [prompt.role(evaluation.trigger) for prompt in prompts]
        self.texts = judges.clip.text_features([p.score_text for p in prompts]).double().numpy()  # (P, D)
        self.references: dict[str, Features] = {}
        self.trained: list[int] = []
        self.names: list[str] = []
        self.base: dict[SampleKey, Features] = {}
        evaluation.eye = "dino_i" if judges.eye else "clip_i"

    def refer_to(self, references: ReferenceImages) -> None:
        """Look at the references, and find the ceiling of fidelity and the limit of copying."""
        eyes = {"clip": self.judges.clip, "eye": self.judges.eye, "detector": self.judges.detector}
        for name, eye in eyes.items():
            if eye:
                self.references[name] = cached_features(eye, references.sources, "references", self.quiet)
        self.names = references.names
        self.trained = [row for row, trained in enumerate(references.trained) if trained]
        self.evaluation.training = references.folder
        seen = self.references.get("eye", self.references["clip"])
        if len(seen) > 1:
            self.evaluation.ceiling = feature_metrics.leave_one_out_fidelity(seen).tolist()
        if len(self.trained) > 2:
            self.evaluation.limit = feature_metrics.copy_limit(seen[self.trained])

    def score(self, taken: VariantSamples) -> VariantScores:
        """Every score of one arm; the one named "base" is what the others drift from."""
        keys = [picture.key for picture in taken.pictures]
        sources = [frame_source(picture.path, picture.clip) for picture in taken.pictures]
        arm = VariantScores(taken.name, taken.step, taken.strength, losses=taken.losses)
        arm.files = {p.key: Path(os.path.relpath(p.path, self.root)).as_posix() for p in taken.pictures}
        clip = cached_features(self.judges.clip, sources, f"{arm.name}: CLIP", self.quiet)
        seen = clip
        if self.judges.eye:
            seen = cached_features(self.judges.eye, sources, f"{arm.name}: image model", self.quiet)
        self._adherence(arm, taken.pictures, clip)
        clip, seen = normalize_rows(clip), normalize_rows(seen)
        self._fidelity(arm, keys, clip, seen)
        self._originality(arm, keys, seen, sources)
        self._diversity(arm, keys, seen)
        for extra in self.judges.extras:
            prompts = [picture.prompt for picture in taken.pictures]
            values = cached_prompt_scores(extra, sources, prompts, arm.name, self.quiet)
            arm.scores[extra.name] = {
                k: float(v) for k, v in zip(keys, values, strict=True) if np.isfinite(v)
            }
        return arm

    def _adherence(self, arm: VariantScores, pictures: Sequence[SampleFile], clip: Features) -> None:
        """CLIP-T, the same with other prompts' texts, and the choice among alternatives."""
        similarity = clip @ self.texts.T
        own = np.array([self.rows[picture.prompt.id] for picture in pictures])
        keys = [picture.key for picture in pictures]
        arm.scores["clip_t"] = _by_key(keys, similarity[np.arange(len(own)), own])
        arm.scores["shuffled"] = {}
        for role in sorted(set(self.roles)):
            # Texts of other roles would tell the subject from the rest, not one prompt from another.
            columns = np.array([row for row, other in enumerate(self.roles) if other == role])
            of_role = np.isin(own, columns)
            places = np.searchsorted(columns, own[of_role])
            values = feature_metrics.shuffled_prompt_similarity(similarity[of_role][:, columns], places)
            some = [key for key, inside in zip(keys, of_role, strict=True) if inside]
            arm.scores["shuffled"] |= {k: v for k, v in _by_key(some, values).items() if math.isfinite(v)}
        self._choices(arm, pictures, clip)

    def _choices(self, arm: VariantScores, pictures: Sequence[SampleFile], clip: Features) -> None:
        asked = [row for row, picture in enumerate(pictures) if picture.prompt.id in self.alternatives]
        if not asked:
            return
        options = [self.alternatives[pictures[row].prompt.id] for row in asked]
        chosen = self.judges.clip.choose(torch.from_numpy(clip[asked]), options)
        arm.scores["right"] = {}
        for row, texts, index in zip(asked, options, chosen, strict=True):
            picture = pictures[row]
            arm.choices[picture.key] = texts[index]
            arm.scores["right"][picture.key] = float(texts[index] == picture.prompt.score_text)

    def _fidelity(
        self, arm: VariantScores, keys: Sequence[SampleKey], clip: Features, seen: Features
    ) -> None:
        if not self.references:
            return
        arm.scores["clip_i"] = _by_key(keys, feature_metrics.fidelity(clip, self.references["clip"]))
        if "eye" in self.references:
            arm.scores["dino_i"] = _by_key(keys, feature_metrics.fidelity(seen, self.references["eye"]))
        subject = [row for row, key in enumerate(keys) if self.roles[self.rows[key[0]]] == "subject"]
        if subject:
            arm.totals["cmmd"] = feature_metrics.cmmd(clip[subject], self.references["clip"])

    def _originality(
        self, arm: VariantScores, keys: Sequence[SampleKey], seen: Features, sources: Sequence[FrameSource]
    ) -> None:
        """Drift from the base, and nearness to the training images."""
        if arm.name == BASE:
            self.base = dict(zip(keys, seen, strict=True))
            apart = feature_metrics.between_group_distance(
                seen, np.array([self.rows[prompt] for prompt, _ in keys])
            )
            if math.isfinite(apart):
                arm.totals["between_prompts"] = apart
        elif self.base:
            others = np.array([self.base[key] for key in keys])
            arm.scores["drift"] = _by_key(keys, feature_metrics.drift(seen, others))
        if not self.trained:
            return
        training = self.references.get("eye", self.references.get("clip", seen))[self.trained]
        similarity, index = feature_metrics.nearest_training_image(seen, training)
        arm.scores["nearest"] = _by_key(keys, similarity)
        arm.lookalikes = {
            key: self.names[self.trained[i]] for key, i in zip(keys, index.tolist(), strict=True)
        }
        if self.judges.detector:
            copied = normalize_rows(
                cached_features(self.judges.detector, sources, f"{arm.name}: copies", self.quiet)
            )
            nearness, _ = feature_metrics.nearest_training_image(
                copied, self.references["detector"][self.trained]
            )
            arm.scores["sscd"] = _by_key(keys, nearness)

    def _diversity(self, arm: VariantScores, keys: Sequence[SampleKey], seen: Features) -> None:
        rows: dict[str, list[int]] = {}
        for row, (prompt, _) in enumerate(keys):
            rows.setdefault(prompt, []).append(row)
        spreads = {prompt: feature_metrics.pairwise_diversity(seen[some]) for prompt, some in rows.items()}
        if known := {prompt: value for prompt, value in spreads.items() if math.isfinite(value)}:
            arm.by_prompt["diversity"] = known
        arm.totals["vendi"] = feature_metrics.vendi_score(seen)


def _by_key(keys: Sequence[SampleKey], values: Any) -> dict[SampleKey, float]:
    return {key: float(value) for key, value in zip(keys, values, strict=True)}
