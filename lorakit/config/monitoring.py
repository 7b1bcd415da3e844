"""Recipe sections `samples`, `validate` and `tracker`: what is measured and sent, which changes no weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lorakit.config.fields import (
    Fraction,
    NonNegativeFloat,
    RecipeSection,
    StepCount,
    StrippedPath,
    StrippedStr,
)


class SamplingConfig(RecipeSection):
    """Samples during training, from fixed prompts with fixed noise."""

    prompts: StrippedPath | None = None
    """Prompt file (JSONL, JSON, YAML, TOML, CSV, TSV or text); null generates no samples. The size,
    steps, guidance and seeds of a prompt come before those of the recipe."""
    every: StepCount = 250
    """Training steps between samples."""
    num_inference_steps: Annotated[int, Field(gt=0, le=1000, strict=True)] = 20
    """Denoising steps of each sample."""
    guidance_scale: NonNegativeFloat | None = None
    """Classifier-free guidance scale; null means the default of the pipeline."""
    clip_model: StrippedStr | None = None
    """CLIP model that scores the samples during training: `embedded`, a folder written by open_clip, or
    NAME/PRETRAINED such as ViT-L-14/openai; null does not score."""
    provenance: Literal["text", "c2pa", "none"] = "text"
    """Contents of the image files beside the pixels: `text` is prompt, seed, settings and hashes as A1111 and
    galleries read them, and the mark that the image is AI-generated; `c2pa` adds a signed C2PA manifest
    (needs lorakit[c2pa]); `none` is nothing."""


class ValidationConfig(RecipeSection):
    """Validation loss: the loss on images that are not trained on."""

    fraction: Literal["auto"] | Fraction = "auto"
    """Fraction of the dataset's different images that are held out, of each concept alike; at least one
    image if it is above 0. `auto` holds out 3 of the 12 to 19 different images of a subject, 4 of 20 or more,
    none of fewer, and none for a slider or with `folder`. Copies of an image, mirrored ones too, are on one
    side."""
    folder: StrippedPath | None = None
    """Folder of other images to validate on, instead of a fraction; a plain folder is prepared first."""
    every: StepCount = 250
    """Training steps between measurements."""

    @model_validator(mode="after")
    def _check_source(self) -> ValidationConfig:
        """Refuse two sources of held-out images."""
        if self.folder and self.fraction not in ("auto", 0):
            raise ValueError("validate.fraction and validate.folder are two ways to choose images: use one")
        return self

    @property
    def enabled(self) -> bool:
        """True if there may be something to validate on; `auto` depends on the number of images."""
        return bool(self.fraction or self.folder)

    @property
    def holds_out(self) -> bool:
        """True if images of the dataset may be held out."""
        return bool(self.fraction) and not self.folder


TrackerName = Literal[
    "none",
    "wandb",
    "tensorboard",
    "mlflow",
    "comet_ml",
    "clearml",
    "swanlab",
    "trackio",
    "aim",
    "dvclive",
]

TRACKER_KEYS: dict[str, tuple[str, ...]] = {
    "none": (),
    "wandb": ("project", "entity", "group", "run_name", "tags"),
    "tensorboard": (),
    "mlflow": ("project", "run_name", "tags"),
    "comet_ml": ("project", "entity", "run_name", "tags"),
    "clearml": ("project", "run_name", "tags"),
    "swanlab": ("project", "entity", "group", "run_name", "tags"),
    "trackio": ("project", "group", "run_name"),
    "aim": ("project", "run_name", "tags"),
    "dvclive": (),
}
"""Keys of the section `tracker` that each tracker has, beside `name`."""


def _reject_text(value: Any) -> Any:
    """Refuse one text where a list belongs."""
    if isinstance(value, str):
        raise ValueError(f"this is a list: write [{value}]")
    return value


class TrackerConfig(RecipeSection):
    """Tracker that also receives metrics and samples. Keys that are left out are read from the tracker's own
    environment variables."""

    name: TrackerName
    """Tracker; metrics.jsonl is always written."""
    project: StrippedStr | None = None
    """Project (experiment of mlflow and aim); null means the environment's, otherwise `lorakit`."""
    entity: StrippedStr | None = None
    """Team or workspace: wandb, comet_ml, swanlab."""
    group: StrippedStr | None = None
    """Group of runs: wandb, swanlab, trackio."""
    run_name: StrippedStr | None = None
    """Name of the run; null means the environment's, otherwise the name of the folder `out`."""
    tags: Annotated[list[StrippedStr] | None, BeforeValidator(_reject_text)] = None
    """Tags of the run: wandb, mlflow, comet_ml, clearml, swanlab, aim."""

    @model_validator(mode="after")
    def _check_keys(self) -> TrackerConfig:
        """Refuse a key that the tracker does not have."""
        known = TRACKER_KEYS[self.name]
        foreign = [key for key, value in self.labels().items() if value is not None and key not in known]
        named = ", ".join(f"tracker.{key}" for key in foreign)
        if foreign and self.name == "none":
            raise ValueError(f"{named}: set tracker.name, or leave this out")
        if foreign:
            keys = f"its keys are {', '.join(known)}" if known else "it has no keys"
            raise ValueError(f"{named}: not a key of {self.name}; {keys}")
        return self

    def labels(self) -> dict[str, Any]:
        """Return the keys that say where a run appears and under which name."""
        return self.model_dump(exclude={"name"})


def merge_tracker(before: Any, value: Any) -> Any:
    """Return the value of the key `tracker` after a change of the value `before`: a word or a section.

    Keys that the change does not name are kept if the tracker stays the same.
    """
    old = {"name": before} if isinstance(before, str) else before
    new = {"name": value} if isinstance(value, str) else value
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return value
    return {**old, **new} if new.get("name") in (None, old.get("name")) else value
