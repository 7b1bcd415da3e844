"""Measures of the subject alone: fidelity of what a mask model cuts out, and the identity of a face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lorakit.evaluation.feature_cache import Features, FrameSource, cached_features, normalize_rows
from lorakit.evaluation.metrics.face_identity import FaceEncoder
from lorakit.evaluation.metrics.image_encoders import ImageEncoder
from lorakit.evaluation.metrics.subject_mask import MaskedEncoder, MaskModel
from lorakit.evaluation.sample_files import SampleFile, SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores

MASKED, FACES = "masked_i", "face_identity"
_NAMED = 5  # images in a note


@dataclass
class SubjectMeasures:
    """The models, and the features of the references that they give.

    `class_nouns` names the subject of each trigger, for mask models that need to know what to look for.
    """

    encoder: ImageEncoder
    mask_model: MaskModel | None = None
    face_encoder: FaceEncoder | None = None
    class_nouns: Mapping[str | None, str | None] = field(default_factory=dict)
    quiet: bool = False
    masked: Features | None = None
    """Unit vectors (R, D) of the masked references."""
    _faces: Features | None = None
    _face_rows: dict[str | None, list[int]] = field(default_factory=dict)

    def set_references(
        self,
        sources: Sequence[FrameSource],
        cut_outs: Mapping[int, FrameSource],
        triggers: Sequence[str | None],
        names: Sequence[str],
    ) -> list[str]:
        """Encode the references; `cut_outs` has those that the dataset has masks of. Returns notes."""
        subjects = list(triggers) or [None] * len(sources)
        notes: list[str] = []
        if self.mask_model:
            rows, seen = self._masked(sources, subjects, "references: masked", cut_outs)
            self.masked = normalize_rows(rows)
            hidden = [name for name, visible in zip(names, seen, strict=True) if not visible]
            notes += _unseen("subject", hidden, "references")
        if self.face_encoder:
            features = cached_features(self.face_encoder, sources, "references: faces", self.quiet)
            seen = (features[:, -1] > 0).tolist()
            self._faces = features[:, :-1]
            for row, visible in enumerate(seen):
                if visible:
                    self._face_rows.setdefault(subjects[row], []).append(row)
            hidden = [name for name, visible in zip(names, seen, strict=True) if not visible]
            notes += _unseen("face", hidden, "references")
        return notes

    def masked_features(
        self,
        evaluation: Evaluation,
        samples: Sequence[SampleFile],
        sources: Sequence[FrameSource],
        label: str,
    ) -> Features | None:
        """Return unit vectors (N, D) of the masked samples; None without a mask model or references."""
        if self.mask_model is None or self.masked is None:
            return None
        triggers = [evaluation.prompt_trigger(sample.prompt) for sample in samples]
        rows, seen = self._masked(sources, triggers, f"{label}: masked", {})
        of_subject = [
            sample.path.name
            for sample, visible in zip(samples, seen, strict=True)
            if not visible and sample.prompt.role(evaluation.triggers) == "subject"
        ]
        evaluation.notes += _unseen("subject", of_subject, label)
        return normalize_rows(rows)

    def score_faces(
        self,
        evaluation: Evaluation,
        variant: VariantScores,
        samples: Sequence[SampleFile],
        sources: Sequence[FrameSource],
    ) -> None:
        """Score the prompts of the subject: mean cosine of the face with the reference faces of its subject.

        An image without a face has no score; the notes count and name such images.
        """
        rows = [i for i, s in enumerate(samples) if s.prompt.role(evaluation.triggers) == "subject"]
        if self.face_encoder is None or self._faces is None or not self._face_rows or not rows:
            return
        own = [sources[row] for row in rows]
        features = cached_features(self.face_encoder, own, f"{variant.name}: faces", self.quiet)
        scores: dict[SampleKey, float] = {}
        without = []
        for row, values in zip(rows, features, strict=True):
            sample = samples[row]
            if values[-1] <= 0:
                without.append(sample.path.name)
                continue
            trigger = evaluation.prompt_trigger(sample.prompt)
            references = self._face_rows.get(trigger) or [r for rs in self._face_rows.values() for r in rs]
            face = values[:-1] / np.linalg.norm(values[:-1])
            scores[sample.key] = float((self._faces[references] @ face).mean())
        if scores:
            variant.scores[FACES] = scores
        evaluation.notes += _unseen("face", without, variant.name)

    def _masked(
        self,
        sources: Sequence[FrameSource],
        subjects: Sequence[str | None],
        label: str,
        cut_outs: Mapping[int, FrameSource],
    ) -> tuple[Features, list[bool]]:
        """Return features (N, D) of the cut-out subjects, and True where the subject was seen (N,)."""
        assert self.mask_model is not None
        results: dict[int, Features] = {}
        seen = np.ones(len(sources), dtype=bool)
        if cut_outs:
            features = cached_features(self.encoder, list(cut_outs.values()), label, self.quiet)
            results |= dict(zip(cut_outs, features, strict=True))
        for subject in dict.fromkeys(subjects):
            rows = [row for row, one in enumerate(subjects) if one == subject and row not in cut_outs]
            if not rows:
                continue
            encoder = MaskedEncoder(self.encoder, self.mask_model, self._noun(subject))
            features = cached_features(encoder, [sources[row] for row in rows], label, self.quiet)
            results |= dict(zip(rows, features[:, :-1], strict=True))
            seen[rows] = features[:, -1] > 0
        return np.stack([results[row] for row in range(len(sources))]), seen.tolist()

    def _noun(self, trigger: str | None) -> str | None:
        """Return the class noun of a trigger; of prompts without one the nouns of all subjects."""
        if trigger in self.class_nouns:
            return self.class_nouns[trigger]
        nouns = set(self.class_nouns.values())
        return nouns.pop() if len(nouns) == 1 else " or ".join(sorted(noun for noun in nouns if noun)) or None


def _unseen(thing: str, names: Sequence[str], where: str) -> list[str]:
    """Return a note that counts and names the images in which a model saw no subject or face, if any."""
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    images = "1 image" if len(names) == 1 else f"{len(names)} images"
    effect = "they are measured whole" if thing == "subject" else "they have no score"
    return [f"{where}: no {thing} was detected in {images} ({', '.join(names[:_NAMED])}{more}); {effect}."]
