"""From images to an `Evaluation`: every score that the prompts, references and models allow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorakit.core.errors import DataError
from lorakit.evaluation.feature_cache import (
    Features,
    FrameSource,
    cached_features,
    cached_part_scores,
    cached_prompt_scores,
    frame_source,
    normalize_rows,
)
from lorakit.evaluation.judge_notes import judge_notes
from lorakit.evaluation.judge_pass import fill_caches
from lorakit.evaluation.metrics import feature_metrics
from lorakit.evaluation.metrics.pixels import ImagePixels, measure_pixels
from lorakit.evaluation.metrics.questions import QuestionScorer, combine
from lorakit.evaluation.on_demand import release
from lorakit.evaluation.references import ReferenceUnits, reference_units
from lorakit.evaluation.sample_files import SampleFile, SampleKey
from lorakit.evaluation.score_table import BASE, Evaluation, VariantScores
from lorakit.evaluation.scoring_inputs import JudgeModels, ReferenceImages, VariantSamples
from lorakit.evaluation.shared_noise import share_noise, unpaired_note
from lorakit.evaluation.subject_measures import MASKED, SubjectMeasures
from lorakit.evaluation.training_images import TrainingImages, pixel_agreement

_SHOWN_KEYS = 5  # in an error message


def score_variants(
    evaluation: Evaluation,
    variants: Sequence[VariantSamples],
    judges: JudgeModels,
    references: ReferenceImages | None,
    *,
    root: Path,
    alternatives: Mapping[str, Sequence[str]] | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Score the variants into `evaluation`, the base model's ("base") first if there is one.

    `root` is the evaluation's folder, to which paths are relative. `alternatives` maps prompt ids to texts
    from which CLIP chooses for each image. Raises DataError if a variant lacks an image that others have,
    because scores are compared in pairs.
    """
    _check_paired(variants)
    encoders = {"copies": judges.copy_detector, "image encoder": judges.image_encoder, "CLIP": judges.clip}
    samples = {variant.name: variant.samples for variant in variants}
    fill_caches(judges.prompt_scorers, encoders, samples, references.sources if references else (), quiet)
    context = _ScoringContext(evaluation, judges, root, alternatives or {}, quiet)
    if references:
        context.set_references(references)
    for variant in sorted(variants, key=lambda variant: variant.name != BASE):
        evaluation.variants.append(context.score_variant(variant))
    evaluation.settings |= judges.describe() | {"win_rates": list(judges.win_rates)}
    evaluation.notes += judge_notes(judges, references, evaluation.prompts)
    release(judges.clip, judges.image_encoder, judges.copy_detector, *judges.prompt_scorers)
    release(judges.mask_model, judges.face_encoder)
    return evaluation


def _check_paired(variants: Sequence[VariantSamples]) -> None:
    keys = {variant.name: {sample.key for sample in variant.samples} for variant in variants}
    all_keys = set().union(*keys.values())
    stopped = {variant.name for variant in variants if variant.stopped_early}
    for name, own_keys in keys.items():
        if name in stopped:
            continue
        if missing := sorted(all_keys - own_keys):
            names = ", ".join(f"{key.prompt_id} seed {key.seed}" for key in missing[:_SHOWN_KEYS])
            more = f" and {len(missing) - _SHOWN_KEYS} more" if len(missing) > _SHOWN_KEYS else ""
            remedy = "generate all folders with the same prompts and seeds"
            raise DataError(f"missing images: {names}{more}", where=name, remedy=remedy)


class _ScoringContext:
    """State that all variants share: text features, references, and the base model's features."""

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
        self.prompt_rows = {prompt.id: row for row, prompt in enumerate(prompts)}
        self.roles = [prompt.role(evaluation.triggers) for prompt in prompts]
        self.text_features = (
            judges.clip.text_features([p.score_text for p in prompts]).double().numpy()
        )  # (P, D)
        self.references: dict[str, Features] = {}
        self.units: ReferenceUnits | None = None
        self.subjects: SubjectMeasures | None = None
        self.training: TrainingImages | None = None
        self.base_features: dict[SampleKey, Features] = {}
        evaluation.fidelity_metric = "dino_i" if judges.image_encoder else "clip_i"

    def set_references(self, references: ReferenceImages) -> None:
        """Encode the references, and measure their similarities and what they look like."""
        encoders = {
            "clip": self.judges.clip,
            "image_encoder": self.judges.image_encoder,
            "copy_detector": self.judges.copy_detector,
        }
        for name, encoder in encoders.items():
            if encoder:
                self.references[name] = cached_features(encoder, references.sources, "references", self.quiet)
        self.evaluation.train_images = references.folder
        features = self.references.get("image_encoder", self.references["clip"])
        vectors = normalize_rows(features)
        pixels = measure_pixels(references.sources, "references", self.quiet)
        self.evaluation.reference_statistics = pixels.statistics.tolist()
        self.units = reference_units(
            vectors,
            references.names,
            references.trained_on,
            references.triggers,
            pixel_agreement(pixels, pixels, vectors @ vectors.T),
        )
        self._set_training_images(references, vectors, pixels)
        self.subjects = self._subject_measures(references)
        masked = self.subjects.masked
        self.evaluation.references = self.units.table(features if masked is None else masked)

    def _set_training_images(
        self, references: ReferenceImages, vectors: Features, pixels: ImagePixels
    ) -> None:
        rows = [row for row, trained_on in enumerate(references.trained_on) if trained_on]
        if not rows:
            return
        descriptors = self.references.get("copy_detector")
        self.training = TrainingImages(
            [references.names[row] for row in rows],
            vectors[rows],
            pixels.rows(rows),
            None if descriptors is None else normalize_rows(descriptors)[rows],
        )
        self.evaluation.copy_scale = self.training.scale

    def _subject_measures(self, references: ReferenceImages) -> SubjectMeasures:
        judges, evaluation = self.judges, self.evaluation
        subjects = SubjectMeasures(
            judges.image_encoder or judges.clip,
            judges.mask_model,
            judges.face_encoder,
            references.class_nouns,
            self.quiet,
        )
        evaluation.notes += subjects.set_references(
            references.sources, references.cut_outs, references.triggers, references.names
        )
        if judges.mask_model:
            evaluation.fidelity_metric = MASKED
        return subjects

    def score_variant(self, images: VariantSamples) -> VariantScores:
        """Compute every score of one variant; all others drift from the one named "base"."""
        samples = images.samples
        keys = [sample.key for sample in samples]
        sources = [frame_source(sample.path, sample.video) for sample in samples]
        variant = VariantScores(images.name, images.step, images.strength, losses=images.losses)
        variant.origin, variant.stopped_early = images.origin, images.stopped_early
        variant.files = {s.key: Path(os.path.relpath(s.path, self.root)).as_posix() for s in samples}
        clip = cached_features(self.judges.clip, sources, f"{variant.name}: CLIP", self.quiet)
        features = clip
        if self.judges.image_encoder:
            label = f"{variant.name}: image encoder"
            features = cached_features(self.judges.image_encoder, sources, label, self.quiet)
        self._prompt_adherence(variant, samples, clip)
        clip, features = normalize_rows(clip), normalize_rows(features)
        self._fidelity(variant, keys, clip, features)
        self._subject_alone(variant, samples, sources)
        self._drift(variant, keys, features)
        self._copies(variant, keys, features, sources)
        self._diversity(variant, keys, features)
        for scorer in self.judges.prompt_scorers:
            prompts = [sample.prompt for sample in samples]
            if isinstance(scorer, QuestionScorer):
                parts = cached_part_scores(scorer, sources, prompts, variant.name, self.quiet)
                variant.question_scores = {key: row for key, row in zip(keys, parts, strict=True) if row}
                values: Any = [combine(row) for row in parts]
            else:
                values = cached_prompt_scores(scorer, sources, prompts, variant.name, self.quiet)
            variant.scores[scorer.name] = _finite(_by_key(keys, values))
        return variant

    def _prompt_adherence(
        self, variant: VariantScores, samples: Sequence[SampleFile], clip: Features
    ) -> None:
        """CLIP-T, CLIP-T with the texts of other prompts, and the choice among alternatives."""
        similarity = clip @ self.text_features.T
        own_rows = np.array([self.prompt_rows[sample.prompt.id] for sample in samples])
        keys = [sample.key for sample in samples]
        variant.scores["clip_t"] = _by_key(keys, similarity[np.arange(len(own_rows)), own_rows])
        shuffled = variant.scores["clip_t_shuffled"] = {}
        for role in sorted(set(self.roles)):
            # Texts of other roles would separate the subject from the rest, not one prompt from another.
            columns = np.array([row for row, other in enumerate(self.roles) if other == role])
            has_role = np.isin(own_rows, columns)
            own_columns = np.searchsorted(columns, own_rows[has_role])
            values = feature_metrics.shuffled_prompt_similarity(similarity[has_role][:, columns], own_columns)
            keys_of_role = [key for key, inside in zip(keys, has_role, strict=True) if inside]
            shuffled |= _finite(_by_key(keys_of_role, values))
        self._clip_choices(variant, samples, clip)

    def _clip_choices(self, variant: VariantScores, samples: Sequence[SampleFile], clip: Features) -> None:
        rows = [row for row, sample in enumerate(samples) if sample.prompt.id in self.alternatives]
        if not rows:
            return
        options = [self.alternatives[samples[row].prompt.id] for row in rows]
        choices = self.judges.clip.nearest_text(torch.from_numpy(clip[rows]), options)
        accuracy = variant.scores["clip_accuracy"] = {}
        for row, texts, index in zip(rows, options, choices, strict=True):
            sample = samples[row]
            variant.clip_choices[sample.key] = texts[index]
            accuracy[sample.key] = float(texts[index] == sample.prompt.score_text)

    def _fidelity(
        self, variant: VariantScores, keys: Sequence[SampleKey], clip: Features, features: Features
    ) -> None:
        if self.units is None:
            return
        by_clip = self.units.similarity(clip, self.references["clip"])
        variant.scores["clip_i"] = self._mean_over_units(keys, by_clip)
        similarity = by_clip
        if "image_encoder" in self.references:
            similarity = self.units.similarity(features, self.references["image_encoder"])
            variant.scores["dino_i"] = self._mean_over_units(keys, similarity)
        variant.reference_similarity = dict(zip(keys, similarity.tolist(), strict=True))
        roles = [self.roles[self.prompt_rows[key.prompt_id]] for key in keys]
        subject_rows = [row for row, role in enumerate(roles) if role == "subject"]
        if subject_rows:
            variant.set_metrics["cmmd"] = feature_metrics.cmmd(clip[subject_rows], self.references["clip"])

    def _subject_alone(
        self, variant: VariantScores, samples: Sequence[SampleFile], sources: Sequence[FrameSource]
    ) -> None:
        """Fidelity of the masked subject, which then is the evaluation's, and identity of the face."""
        if self.units is None or self.subjects is None:
            return
        features = self.subjects.masked_features(self.evaluation, samples, sources, variant.name)
        if features is not None and self.subjects.masked is not None:
            keys = [sample.key for sample in samples]
            similarity = self.units.similarity(features, self.subjects.masked)
            variant.scores[MASKED] = self._mean_over_units(keys, similarity)
            variant.reference_similarity = dict(zip(keys, similarity.tolist(), strict=True))
        self.subjects.score_faces(self.evaluation, variant, samples, sources)

    def _mean_over_units(self, keys: Sequence[SampleKey], similarity: Features) -> dict[SampleKey, float]:
        """Return the mean of each image's row (N, U) over the units that its prompt is compared with."""
        prompts = {prompt.id: prompt for prompt in self.evaluation.prompts}
        units = {name: self.evaluation.prompt_units(prompt) for name, prompt in prompts.items()}
        return {
            key: float(row[units[key.prompt_id]].mean()) for key, row in zip(keys, similarity, strict=True)
        }

    def _drift(self, variant: VariantScores, keys: Sequence[SampleKey], features: Features) -> None:
        """Drift from the base model; for the base model itself the distance between prompts."""
        if variant.name == BASE:
            self.base_features = dict(zip(keys, features, strict=True))
            groups = np.array([self.prompt_rows[key.prompt_id] for key in keys])
            prompt_distance = feature_metrics.between_group_distance(features, groups)
            if math.isfinite(prompt_distance):
                variant.set_metrics["prompt_distance"] = prompt_distance
        elif self.base_features:
            base = np.array([self.base_features[key] for key in keys])
            if variant.origin is None:  # of another generator, whose noise is not known
                variant.shares_noise = share_noise(keys, features, base)
                note = unpaired_note(variant.name, variant.shares_noise)
                self.evaluation.notes += [note] if note else []
            if variant.shares_noise is False:
                return
            variant.scores["drift"] = _by_key(keys, feature_metrics.drift(features, base))

    def _copies(
        self,
        variant: VariantScores,
        keys: Sequence[SampleKey],
        features: Features,
        sources: Sequence[FrameSource],
    ) -> None:
        """Compare with the training images, by features, pixels and the copy detector."""
        pixels = measure_pixels(sources, variant.name, self.quiet)
        variant.image_statistics = dict(zip(keys, pixels.statistics.tolist(), strict=True))
        if self.training is None:
            return
        matches = dict(zip(keys, self.training.compare(features, pixels), strict=True))
        variant.scores["nearest_train_similarity"] = {
            key: max(match.similarity, match.second_similarity) for key, match in matches.items()
        }
        variant.nearest_train_images = {key: match.image for key, match in matches.items()}
        variant.training_matches = matches if self.training.scale else {}
        if self.judges.copy_detector:
            label = f"{variant.name}: copies"
            descriptors = cached_features(self.judges.copy_detector, sources, label, self.quiet)
            nearest = self.training.sscd_similarity(normalize_rows(descriptors))
            variant.scores["sscd"] = _by_key(keys, nearest)

    def _diversity(self, variant: VariantScores, keys: Sequence[SampleKey], features: Features) -> None:
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key.prompt_id, []).append(row)
        diversity = {
            prompt_id: feature_metrics.pairwise_diversity(features[prompt_rows])
            for prompt_id, prompt_rows in rows.items()
        }
        if known := {prompt_id: value for prompt_id, value in diversity.items() if math.isfinite(value)}:
            variant.per_prompt["diversity"] = known
        variant.set_metrics["vendi"] = feature_metrics.vendi_score(features)


def _by_key(keys: Sequence[SampleKey], values: Any) -> dict[SampleKey, float]:
    return {key: float(value) for key, value in zip(keys, values, strict=True)}


def _finite(scores: dict[SampleKey, float]) -> dict[SampleKey, float]:
    return {key: value for key, value in scores.items() if math.isfinite(value)}
