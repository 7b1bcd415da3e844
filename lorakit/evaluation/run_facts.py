"""Facts of a run that explain the result of its evaluation: its images, captions and settings.

They are stored in scores.json, so that a report written later gives the same reasons. `read_facts` reads them
from a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorakit.core.statistics import Interval


@dataclass(frozen=True)
class ConceptFacts:
    """The training images of one folder; near duplicates count once in `num_distinct`."""

    folder: str
    """Name of the folder."""
    trigger: str | None
    num_images: int
    """Images of the subject that are trained on: those with the trigger in a caption, or all if none has."""
    num_distinct: int
    num_with_trigger: int
    num_distinct_captions: int


@dataclass(frozen=True)
class CaptionMatch:
    """The match of training images and captions by CLIP.

    `share` is 1 if each image fits its own caption better than all others, and 0 if it fits its own no better
    than any other.
    """

    share: Interval
    num_captions: int
    """Distinct captions that were compared."""
    margin: float
    """Mean cosine of an image with its own caption minus that with the others."""
    reach: float
    """The same for the best-fitting caption of each image."""
    worst: tuple[str, ...] = ()
    """The files whose own caption fits worst against the others."""


@dataclass(frozen=True)
class SubjectGroups:
    """Two groups that the training images of one trigger word fall into, as captions do not explain it."""

    trigger: str | None
    names: tuple[tuple[str, ...], tuple[str, ...]]
    """The files of each group, as FOLDER/FILE, the most typical first."""
    separation: float
    """Silhouette: 0 if the groups overlap, 1 if they are points."""
    folders: tuple[str, str] | None = None
    """The two folders, if each group is one."""


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run; None where one is unknown, with the reason in `unknown`."""

    num_images: int | None = None
    """Distinct training images of the subjects; near duplicates count once."""
    concepts: tuple[ConceptFacts, ...] = ()
    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    optimizer: str | None = None
    lr: float | None = None
    num_steps: int | None = None
    epochs: float | None = None
    """Number of times that the training used each image."""
    caption_match: CaptionMatch | None = None
    subject_groups: SubjectGroups | None = None
    unknown: tuple[str, ...] = ()
    """Reasons for facts that are None."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for scores.json."""
        value = asdict(self)
        if self.caption_match:
            value["caption_match"]["share"] = self.caption_match.share.to_json()
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunFacts:
        """Read the values that `to_json` writes."""
        facts = cls(**value)
        match, groups = value.get("caption_match"), value.get("subject_groups")
        return replace(
            facts,
            concepts=tuple(ConceptFacts(**concept) for concept in value.get("concepts", ())),
            caption_match=_caption_match(match) if match else None,
            subject_groups=_subject_groups(groups) if groups else None,
            unknown=tuple(facts.unknown),
        )


def _caption_match(value: Mapping[str, Any]) -> CaptionMatch:
    match = CaptionMatch(**value)
    return replace(match, share=_interval(value["share"]), worst=tuple(match.worst))


def _subject_groups(value: Mapping[str, Any]) -> SubjectGroups:
    groups = SubjectGroups(**value)
    first, second = map(tuple, groups.names)
    folders = groups.folders and (groups.folders[0], groups.folders[1])
    return replace(groups, names=(first, second), folders=folders)


def _interval(value: Mapping[str, Any]) -> Interval:
    low, high = (float("nan") if value[key] is None else value[key] for key in ("ci_low", "ci_high"))
    return Interval(value["mean"], low, high, value["num_prompts"])
