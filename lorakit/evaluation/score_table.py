"""What an evaluation measured, as plain values: scores.json, and everything that is worked out from it.

An arm is one way to make the pictures: the base, a checkpoint, another strength, another generator. Arms
share prompts and seeds, so their scores are paired.
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
from lorakit.core.statistics import Interval, bootstrap
from lorakit.data.prompts import Prompt, Role, prompt_to_row
from lorakit.evaluation.metrics.feature_metrics import CopyLimit

SCORES_FILE = "scores.json"
FORMAT_VERSION = 1
BASE = "base"
SampleKey = tuple[str, int]  # prompt id and seed


@dataclass(frozen=True)
class Metric:
    """How a score is named and shown: `better` is 1 for higher, -1 for lower, 0 for neither."""

    title: str
    better: int
    note: str
    scale: float = 100.0
    digits: int = 1


METRICS: dict[str, Metric] = {
    "clip_t": Metric("CLIP-T", 1, "100 x cosine of a picture and its text"),
    "dino_i": Metric(
        "DINO-I", 1, "100 x mean cosine of a picture and all reference images, by the image model"
    ),
    "clip_i": Metric("CLIP-I", 1, "100 x mean cosine of a picture and all reference images, by CLIP"),
    "drift": Metric("Drift", -1, "100 x (1 - cosine) with the base's picture from the same noise"),
    "nearest": Metric("Nearest image", 0, "100 x cosine with the training image it resembles most"),
    "sscd": Metric("SSCD", -1, "100 x cosine with the nearest training image by the copy detector"),
    "diversity": Metric("Diversity", 1, "100 x (1 - mean cosine over the pairs of a prompt's seeds)"),
    "right": Metric(
        "Right choice", 1, "% of pictures whose own text CLIP picks among alternatives", digits=0
    ),
    "shuffled": Metric("CLIP-T, other prompts' texts", 0, "what a picture scores with texts not its own"),
    "clipscore": Metric("CLIPScore", 1, "2.5 max(cosine, 0), texts prefixed 'A photo depicts '", 1.0, 3),
    "vqascore": Metric("VQAScore", 1, "% probability of Yes to 'Does this figure show ...?'"),
    "pickscore": Metric("PickScore", 1, "preference of people, by PickScore", 1.0, 2),
    "hpsv2": Metric("HPSv2", 1, "preference of people, by HPSv2"),
    "ocr": Metric(
        "Text accuracy", 1, "% of the quoted text that an OCR engine reads in the picture", digits=0
    ),
    "vendi": Metric("Vendi", 1, "effective number of different pictures", 1.0, 1),
    "cmmd": Metric("CMMD", -1, "1000 x squared discrepancy from the references' CLIP features", 1.0, 1),
    "validation_loss": Metric("Validation loss", -1, "on held-out images, fixed noise", 1.0, 4),
    "loss_gap": Metric(
        "Loss gap", 0, "validation loss minus that of training images at the same noise", 1.0, 4
    ),
}


def metric_spec(name: str) -> Metric:
    """The metric of a name; `clip_t@MODEL` is CLIP-T by a second model."""
    plain, _, model = name.partition("@")
    found = METRICS[plain]
    return Metric(f"{found.title} ({model})", found.better, found.note) if model else found


@dataclass
class VariantScores:
    """Pictures of one origin and their scores: by picture, by prompt, and of all of them together."""

    name: str
    step: int | None = None
    strength: float | None = None
    files: dict[SampleKey, str] = field(default_factory=dict)
    """Paths relative to the evaluation's folder."""
    scores: dict[str, dict[SampleKey, float]] = field(default_factory=dict)
    by_prompt: dict[str, dict[str, float]] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    """"held out" and "trained on": the loss of each image, the same images for every arm."""
    lookalikes: dict[SampleKey, str] = field(default_factory=dict)
    """The training image that each picture resembles most."""
    choices: dict[SampleKey, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        rows = []
        for key, file in self.files.items():
            row: dict[str, Any] = {"prompt_id": key[0], "seed": key[1], "file": file}
            row |= {name: values[key] for name, values in self.scores.items() if key in values}
            for name, texts in (("lookalike", self.lookalikes), ("choice", self.choices)):
                if key in texts:
                    row[name] = texts[key]
            rows.append(row)
        return {
            "name": self.name,
            "step": self.step,
            "strength": self.strength,
            "totals": self.totals,
            "by_prompt": self.by_prompt,
            "losses": self.losses,
            "pictures": rows,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VariantScores:
        arm = cls(value["name"], value["step"], value["strength"])
        arm.totals, arm.by_prompt = dict(value["totals"]), dict(value["by_prompt"])
        arm.losses = dict(value["losses"])
        for row in value["pictures"]:
            key = (row["prompt_id"], row["seed"])
            arm.files[key] = row["file"]
            for name, score in row.items():
                if name in ("prompt_id", "seed", "file"):
                    continue
                if name == "lookalike":
                    arm.lookalikes[key] = score
                elif name == "choice":
                    arm.choices[key] = score
                else:
                    arm.scores.setdefault(name, {})[key] = score
        return arm


@dataclass
class Evaluation:
    """All arms, the base first where there is one, and what makes their numbers readable."""

    title: str
    prompts: list[Prompt]
    arms: list[VariantScores]
    trigger: str | None = None
    eye: str = "clip_i"
    """The fidelity metric that counts: by the image model where one was given, else by CLIP."""
    ceiling: list[float] = field(default_factory=list)
    """Fidelity of each reference, left out in turn, to the others."""
    limit: CopyLimit | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    training: str | None = None
    """Folder of the training images, relative to the evaluation's, to show lookalikes."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    @property
    def base(self) -> VariantScores | None:
        """The base model's arm."""
        return next((arm for arm in self.arms if arm.name == BASE), None)

    @property
    def tuned(self) -> list[VariantScores]:
        """All arms but the base, by step, then strength."""
        return sorted(
            (arm for arm in self.arms if arm.name != BASE), key=lambda arm: (arm.step or 0, arm.strength or 1)
        )

    def of_role(self, *roles: Role) -> list[Prompt]:
        """The prompts that have one of these roles."""
        return [prompt for prompt in self.prompts if prompt.role(self.trigger) in roles]

    def column(self, arm: VariantScores, name: str, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
        """One number a prompt (G,), its seeds' mean; NaN where nothing was measured."""
        if name in arm.by_prompt:
            values = arm.by_prompt[name]
            return np.array([values.get(prompt.id, math.nan) for prompt in prompts])
        scores = arm.scores.get(name, {})
        rows = [
            [scores[p.id, seed] for seed in p.seeds if (p.id, seed) in scores] or [math.nan] for p in prompts
        ]
        return np.array([float(np.mean(row)) for row in rows])

    def interval(self, arm: VariantScores, name: str, prompts: Sequence[Prompt]) -> Interval | None:
        """The mean over prompts with its interval; None when none was measured."""
        return bootstrap_mean_interval(self.column(arm, name, prompts))

    def gain(
        self, before: VariantScores, after: VariantScores, name: str, prompts: Sequence[Prompt]
    ) -> Interval | None:
        """The mean paired difference between two arms."""
        return bootstrap_mean_interval(self.column(after, name, prompts) - self.column(before, name, prompts))

    def measured(self) -> list[str]:
        """The metrics by picture or prompt that some arm has, in the order they are shown."""
        names = {name for arm in self.arms for name in (*arm.scores, *arm.by_prompt)}
        order = list(METRICS)
        return sorted(names, key=lambda name: (order.index(name.partition("@")[0]), name))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": FORMAT_VERSION,
            "title": self.title,
            "trigger": self.trigger,
            "prompts": [
                {k: v for k, v in prompt_to_row(p).items() if k != "image"} | {"role": p.role(self.trigger)}
                for p in self.prompts
            ],
            "arms": [arm.to_json() for arm in self.arms],
            "fidelity": self.eye,
            "ceiling": self.ceiling,
            "copy_limit": vars(self.limit) if self.limit else None,
            "settings": self.settings,
            "facts": [list(fact) for fact in self.facts],
            "training": self.training,
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluation:
        limit = value["copy_limit"]
        return cls(
            title=value["title"],
            prompts=[_prompt(row) for row in value["prompts"]],
            arms=[VariantScores.from_json(arm) for arm in value["arms"]],
            trigger=value["trigger"],
            eye=value["fidelity"],
            ceiling=list(value["ceiling"]),
            limit=CopyLimit(**limit) if limit else None,
            settings=dict(value["settings"]),
            facts=[(name, text) for name, text in value["facts"]],
            training=value["training"],
            notes=list(value["notes"]),
        )


def _prompt(row: Mapping[str, Any]) -> Prompt:
    text = row["prompt"]
    seeds, score_text = tuple(row["seeds"]), row.get("score_text", text)
    return Prompt(row["id"], text, score_text, row.get("negative", ""), seeds, row["kind"])


def bootstrap_mean_interval(column: NDArray[np.float64]) -> Interval | None:
    """The mean of the prompts (G,) that were measured."""
    known = column[np.isfinite(column)]
    return bootstrap(known[:, None], lambda row: row[..., 0]) if len(known) else None


def load_evaluation(folder: str | Path) -> tuple[Path, Evaluation]:
    """The evaluation in a folder, or in a run's, with its own folder; a DataError says how to make one."""
    root = Path(folder)
    file = next((f for f in (root / SCORES_FILE, root / "eval" / SCORES_FILE) if f.is_file()), None)
    if file is None:
        remedy = "make it with `lorakit eval run RUN` or `lorakit eval score DIR`"
        raise DataError(f"the folder has no {SCORES_FILE}", where=str(root), remedy=remedy)
    value = storage.read_json(file)
    if not isinstance(value, dict) or value.get("format") != FORMAT_VERSION:
        raise DataError("written by another version", where=str(file), remedy="evaluate again")
    try:
        return file.parent, Evaluation.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not an evaluation: {error!r}", where=str(file), remedy="evaluate again") from error
