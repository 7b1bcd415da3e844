"""The typed recipe: one YAML file is one run.

Every key is declared here; an unknown key, a misspelt value or an impossible number is one error that names
the key and the nearest valid spelling, raised before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lorakit.config import strict_yaml, validation_errors
from lorakit.config.adapter import AdapterConfig as AdapterConfig
from lorakit.config.adapter import SliderConfig as SliderConfig
from lorakit.config.adapter import TextualInversionConfig as TextualInversionConfig
from lorakit.config.fields import MAX_RANK as MAX_RANK
from lorakit.config.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RecipeSection,
    StrippedPath,
    StrippedStr,
)
from lorakit.config.objective import ObjectiveConfig as ObjectiveConfig
from lorakit.core.errors import ConfigError
from lorakit.core.storage import dump_json, sha256_bytes


class OptimizerConfig(RecipeSection):
    """How it is trained."""

    name: Literal["adamw8bit", "adamw"] = "adamw8bit"
    """`adamw8bit` keeps its moments in 8 bits (bitsandbytes); `adamw` in 32."""
    lr: PositiveFloat = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up; cosine and linear end at zero."""
    warmup: NonNegativeInt = 0
    """Steps of linear warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the first and second moments."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    clip: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    lora_plus_ratio: PositiveFloat = 1.0
    """LoRA's B learns this many times as fast as A (LoRA+, arXiv:2402.12354, has 16)."""


class TrainConfig(RecipeSection):
    """How long, how much at once, and what is kept."""

    steps: PositiveInt = 1500
    """Optimizer steps in all."""
    batch_size: PositiveInt = 1
    """Images per forward pass and process."""
    accumulate: PositiveInt = 1
    """Forward passes per optimizer step."""
    seed: NonNegativeInt = 0
    """All randomness is a function of it."""
    save_every: PositiveInt = 250
    """Steps between checkpoints: the most that a crash can cost."""
    keep: PositiveInt = 3
    """Checkpoints kept."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the frozen base; the adapter itself stays fp32."""
    deterministic: Annotated[bool, Field(strict=True)] = False
    """On a GPU, ask torch for algorithms that give the same bits each time; a CPU does so anyway."""


class MemoryConfig(RecipeSection):
    """Trades of memory for time."""

    checkpoint: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """1 recomputes activations in the backward pass, 0 keeps them."""
    quantize: Literal["nf4", "int8"] | None = None
    """Bits of the frozen base's linear layers: `nf4` a quarter of bf16's memory, `int8` half; none keeps
    them."""

    @model_validator(mode="after")
    def _whole(self) -> MemoryConfig:
        if self.checkpoint not in (0.0, 1.0):
            raise ValueError("checkpoint must be 0 or 1: a fraction of the blocks is not supported yet")
        return self


class SamplingConfig(RecipeSection):
    """Pictures made during training from fixed prompts with fixed noise."""

    prompts: StrippedPath | None = None
    """Prompt file (JSONL, YAML, TSV or text); none makes no samples."""
    every: PositiveInt = 250
    """Steps between sampling; a multiple of it is sampled after its commit."""
    steps: PositiveInt = 20
    """Sampler steps."""
    guidance: NonNegativeFloat | None = None
    """Classifier-free guidance; none means the pipeline's default."""
    clip: StrippedStr | None = None
    """CLIP that scores the samples on the way: `embedded`, a folder of open_clip's, or NAME/PRETRAINED
    such as ViT-L-14/openai; none scores nothing."""


class ValidationConfig(RecipeSection):
    """Loss on images that are not trained on."""

    fraction: Fraction = 0.0
    """Share of the images held out."""
    every: PositiveInt = 250
    """Steps between measurements."""


class Recipe(RecipeSection):
    """One run."""

    base: StrippedStr
    """Embedded name (tiny-unet, tiny-dit), a local diffusers folder, or a hub id, best as id@revision."""
    dataset: StrippedPath
    """A folder with manifest.jsonl, or a plain folder of images, which is then prepared on the way; with a
    `slider` it may be left out, and the base draws its own beside `out`."""
    out: StrippedPath
    """The run's folder."""
    init_from: StrippedPath | None = None
    """A new run that starts from the weights of an adapter: a file written by lorakit, or a run's folder."""
    class_images: StrippedPath | None = None
    """A second dataset, of the class without the subject: each step learns as many of it too, so that the
    class stays what it was (DreamBooth's prior preservation)."""
    resolution: Annotated[int, Field(ge=16, le=16384, strict=True)] = 1024
    """Pixels of a square picture's side; other shapes have about the same area."""
    frames: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    """Frames of a clip, for bases that make clips; 1 trains and samples stills. What the base cannot divide
    is left out."""
    trigger: StrippedStr | None = None
    """The word the concept is taught under; used when captions must be made, and recorded in exports."""
    class_noun: StrippedStr | None = None
    """What the subject is ("dog"); used when captions must be made."""
    adapter: AdapterConfig = AdapterConfig()
    embedding: TextualInversionConfig | None = None
    """A new word to be learned, with or without an adapter; none teaches none."""
    slider: SliderConfig | None = None
    """Train a slider between two prompts instead of what the captions say; none trains the captions."""
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    memory: Literal["auto"] | MemoryConfig = "auto"
    """`auto` recomputes activations only on a GPU, or a section."""
    samples: SamplingConfig = SamplingConfig()
    validate_: ValidationConfig = Field(default=ValidationConfig(), alias="validate")
    tracker: Literal["none", "wandb", "tensorboard"] = "none"
    """Where metrics also go; metrics.jsonl is always written."""
    export: list[Literal["comfyui", "a1111", "diffusers"]] = Field(default=["comfyui"])
    """Which tools the finished adapter is exported for."""

    @model_validator(mode="before")
    @classmethod
    def _own_pictures(cls, tree: Any) -> Any:
        """A slider's pictures lie beside its run."""
        if isinstance(tree, dict) and tree.get("slider") and tree.get("out") and "dataset" not in tree:
            return tree | {"dataset": f"{tree['out']}-pictures"}
        return tree

    @model_validator(mode="after")
    def _agree(self) -> Recipe:
        for problem in self._contradictions():
            raise ValueError(problem)
        return self

    def _contradictions(self) -> Iterator[str]:
        """What cannot go together, each as a sentence that names the keys."""
        kind = self.adapter.type
        low = kind in ("lora", "rslora", "dora")
        if self.optimizer.warmup > self.train.steps:
            yield (
                f"optimizer.warmup ({self.optimizer.warmup}) is longer than train.steps ({self.train.steps}):"
                " the learning rate would never be reached"
            )
        if self.objective.class_weight != 1.0 and not self.class_images:
            yield "objective.class_weight weighs `class_images`, and there are none: give a folder"
        if self.objective.preserve and not (self.trigger and self.class_noun):
            yield "objective.preserve puts the class noun for the trigger: give `trigger` and `class_noun`"
        if kind == "none" and self.embedding is None:
            yield "adapter.type none trains nothing: add an `embedding`, or choose another type"
        if self.optimizer.lora_plus_ratio != 1 and not low:
            yield f"optimizer.lora_plus_ratio: {kind} has no B that it could speed up"
        if self.quantized and not low and kind != "none":
            yield (
                f"adapter.type {kind} changes whole weights, which memory.quantize has none of:"
                " leave one of them out"
            )
        if self.init_from and self.adapter.init in ("pissa", "olora"):
            yield f"init_from and adapter.init {self.adapter.init} both say what to begin with"
        if self.slider:
            yield from (f"a slider has a loss of its own: leave out {key}" for key in self._beside_a_slider())

    def _beside_a_slider(self) -> list[str]:
        parts = ("mask", "preserve", "caption_dropout")
        given = {f"objective.{part}": getattr(self.objective, part) for part in parts}
        given |= {"class_images": self.class_images, "embedding": self.embedding}
        given |= {"adapter.text_encoder": self.adapter.text_encoder}
        return [key for key, value in given.items() if value]

    def dump(self) -> dict[str, Any]:
        """Plain values as they go into recipe.yaml and run.json."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def quantized(self) -> Literal["nf4", "int8"] | None:
        """How the frozen base is held in few bits; None: whole."""
        return self.memory.quantize if isinstance(self.memory, MemoryConfig) else None

    @property
    def effective_batch(self) -> int:
        """Images per optimizer step and process."""
        return self.train.batch_size * self.train.accumulate


__all__ = [
    "MAX_RANK",
    "AdapterConfig",
    "SliderConfig",
    "TextualInversionConfig",
]  # part of a recipe, and found here

# Keys that change what is shown or kept, not one byte of the adapter: a run may go on with other values.
# Base, dataset and first adapter may move: their content is what a run holds on to, by hash.
NON_TRAINING_KEYS = (
    "out",
    "base",
    "dataset",
    "init_from",
    "class_images",
    "samples",
    "tracker",
    "export",
    "train.save_every",
    "train.keep",
    "validate.every",
)


def training_settings(recipe: Recipe) -> dict[str, Any]:
    """The flat settings that decide the adapter's bytes: {"optimizer.lr": 0.0001, ...}."""
    flat = _flatten(recipe.dump())
    return {
        key: flat[key]
        for key in flat
        if not any(key == f or key.startswith(f + ".") for f in NON_TRAINING_KEYS)
    }


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of `identity`."""
    return sha256_bytes(dump_json(training_settings(recipe)).encode())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def builtin_recipes_folder() -> Path:
    """Where the recipes that ship lie: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file with dotted overrides such as `optimizer.lr=2e-4`."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            "there is no such recipe", where=str(path), remedy="`lorakit recipes` lists the ones that ship"
        )
    tree = strict_yaml.read_yaml(file)
    if not isinstance(tree, dict):
        raise ConfigError("a recipe is a mapping of keys to values", where=str(path))
    for override in overrides or []:
        _override(tree, override)
    return parse_recipe(tree, str(path))


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r} is not of the form key=value", remedy="for instance optimizer.lr=2e-4")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        below = node.setdefault(parent, {})
        if not isinstance(below, dict):
            node[parent] = below = {}
        node = below
    node[last] = strict_yaml.parse_yaml(value, f"override {key}")


def parse_recipe(tree: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain values; all problems are listed in one `ConfigError`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = validation_errors.format_validation_errors(error, Recipe)
        raise ConfigError("the recipe has a problem:\n  " + "\n  ".join(lines), where=where) from error
