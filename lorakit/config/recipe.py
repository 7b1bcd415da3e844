"""The recipe: one YAML file describes one run.

Every key is declared in this package. An unknown key, a misspelt value or an impossible number is one error
that names the key and the nearest valid spelling, raised before anything is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lorakit.config import recipe_files, strict_yaml, validation_errors
from lorakit.config.adapter import AdapterConfig as AdapterConfig
from lorakit.config.adapter import SliderConfig as SliderConfig
from lorakit.config.adapter import TextualInversionConfig as TextualInversionConfig
from lorakit.config.builtin_recipes import builtin_recipes_folder as builtin_recipes_folder
from lorakit.config.builtin_recipes import find_recipe
from lorakit.config.caption_use import CaptionUse as CaptionUse
from lorakit.config.concepts import Concept as Concept
from lorakit.config.concepts import Dataset, concept_to_change, find_contradictions, unique_triggers
from lorakit.config.fields import MAX_RANK as MAX_RANK
from lorakit.config.fields import (
    RecipeSection,
    StrippedPath,
    StrippedStr,
)
from lorakit.config.monitoring import SamplingConfig as SamplingConfig
from lorakit.config.monitoring import TrackerConfig as TrackerConfig
from lorakit.config.monitoring import TrackerName, merge_tracker
from lorakit.config.monitoring import ValidationConfig as ValidationConfig
from lorakit.config.objective import ObjectiveConfig as ObjectiveConfig
from lorakit.config.optimizer_names import PRODIGY, SCHEDULE_FREE
from lorakit.config.suggest_key import explain_setting
from lorakit.config.training import MemoryConfig as MemoryConfig
from lorakit.config.training import OptimizerConfig as OptimizerConfig
from lorakit.config.training import TrainConfig as TrainConfig
from lorakit.core.checksums import sha256_bytes
from lorakit.core.errors import ConfigError
from lorakit.core.storage import dump_json


class Recipe(RecipeSection):
    """The settings of one run."""

    base: StrippedStr
    """Base model: an embedded name (tiny-unet, tiny-dit), a local diffusers folder, a single .safetensors
    checkpoint, or a hub id, best as id@revision."""
    dataset: Dataset
    """A folder with manifest.jsonl, or a plain folder of images, which is then prepared first; or a list of
    concepts, each with a folder. With `slider` it may be left out: the base model generates the images into a
    folder beside `out`."""
    out: StrippedPath
    """The run's folder."""
    init_from: StrippedPath | None = None
    """Adapter that the training starts from, with the same delta weights: a file of any trainer, or the
    folder of a run or of peft. `adapter` must cover all of its modules; others start fresh."""
    class_images: StrippedPath | None = None
    """A second dataset, of the class without the subject, for prior preservation (DreamBooth,
    arXiv:2208.12242): each step also trains on as many class images. With a list of concepts, a key of each
    concept."""
    resolution: Annotated[int, Field(ge=16, le=16384, strict=True)] = 1024
    """Side of a square training image in pixels; other buckets have about the same area."""
    frames: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    """Frames of a video, for base models that generate video; 1 trains and samples still images. Rounded down
    to a number of frames that the base model can encode."""
    trigger: StrippedStr | None = None
    """Trigger word of the concept; used in captions that lorakit writes, and recorded in exports. With a list
    of concepts, a key of each concept."""
    class_noun: StrippedStr | None = None
    """Class noun of the subject, such as `dog`; used in captions that lorakit writes. With a list of
    concepts, a key of each concept."""
    adapter: AdapterConfig = AdapterConfig()
    textual_inversion: TextualInversionConfig | None = None
    """Learn a new token, with or without an adapter (textual inversion); null does not."""
    slider: SliderConfig | None = None
    """Train a concept slider between two prompts instead of the captions; null trains the captions."""
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    caption_use: CaptionUse = CaptionUse()
    use_generated_controls: bool = False
    """Train a Control LoRA on a base that has no control input of its own (Flux.1 dev), from the controls of
    `lorakit data control`. Bases with such an input use them always, others never."""
    memory: Literal["auto"] | MemoryConfig = "auto"
    """`auto`, or a section; keys that it leaves out are automatic."""
    samples: SamplingConfig = SamplingConfig()
    validate_: ValidationConfig = Field(default=ValidationConfig(), alias="validate")
    tracker: TrackerName | TrackerConfig = "none"
    """Tracker that also receives metrics and samples: a word, or a section."""
    export: list[Literal["comfyui", "a1111", "diffusers"]] = Field(default=["comfyui"])
    """Programs that the finished adapter is exported for."""

    @model_validator(mode="before")
    @classmethod
    def _default_slider_dataset(cls, tree: Any) -> Any:
        """Set the dataset of a slider to a folder beside its run."""
        if isinstance(tree, dict) and tree.get("slider") and tree.get("out") and "dataset" not in tree:
            return tree | {"dataset": f"{tree['out']}-images"}
        return tree

    @model_validator(mode="after")
    def _check_contradictions(self) -> Recipe:
        for problem in self._contradictions():
            raise ValueError(problem)
        return self

    def _contradictions(self) -> Iterator[str]:
        """Yield a sentence that names the keys for each pair of settings that contradict each other."""
        method = self.adapter.type
        is_low_rank = method in ("lora", "rslora", "dora")
        if self.train.ema_decay and self.optimizer.name == SCHEDULE_FREE:
            yield f"optimizer.name {SCHEDULE_FREE} has an average of its own: leave out train.ema_decay"
        if self.optimizer.name == PRODIGY and (self.adapter.text_encoder_lr or self.textual_inversion):
            yield "optimizer.name prodigy has one learning rate: leave out the other rates and new tokens"
        if self.optimizer.warmup > self.train.steps:
            yield (
                f"optimizer.warmup ({self.optimizer.warmup}) is longer than train.steps ({self.train.steps}):"
                " the learning rate would never be reached"
            )
        yield from self._concept_contradictions()
        if method == "none" and self.textual_inversion is None:
            yield "adapter.type none trains nothing: set `textual_inversion`, or choose another type"
        for consumer in dict.fromkeys(name for name in self.export if self.export.count(name) > 1):
            yield f"export names {consumer} twice: leave one out"
        if self.optimizer.loraplus_lr_ratio != 1 and not is_low_rank:
            yield f"optimizer.loraplus_lr_ratio needs a matrix B, which adapter.type {method} does not have"
        if self.memory_config.quantize == "nf4" and method in ("loha", "lokr"):
            yield (
                f"adapter.type {method} needs weights in rows and columns, which memory.quantize nf4 does not"
                " keep: use int8 or fp8"
            )
        config = self.memory_config
        for key in ("stream", "offload_modulation", "offload_activations"):
            if config.shard and getattr(config, key):
                yield f"memory.shard divides the weights among GPUs, and memory.{key} does not: leave one out"
        if config.shard and config.quantize not in (None, "none"):
            yield "memory.shard divides weights that are not quantized: leave out memory.quantize"
        if self.init_from and self.adapter.init in ("pissa", "olora"):
            init = self.adapter.init
            yield f"init_from and adapter.init {init} both set the initial weights: leave one of them out"
        if self.slider:
            yield from (
                f"slider has a loss of its own: leave out {key}" for key in self._keys_without_slider()
            )

    def _concept_contradictions(self) -> Iterator[str]:
        concepts = self.concepts
        if isinstance(self.dataset, tuple):
            for key in ("trigger", "class_noun", "class_images"):
                if getattr(self, key) is not None:
                    yield (
                        f"`{key}` belongs to each concept of a list: set it there, and leave `{key}` out"
                        f" (on the command line: {key}=null)"
                    )
            yield from find_contradictions(concepts)
        if self.objective.prior_loss_weight != 1.0 and not any(c.class_images for c in concepts):
            yield "objective.prior_loss_weight needs `class_images`: set `class_images` to a folder"
        if self.objective.output_preservation and not (
            self.triggers and all(c.class_noun for c in concepts if c.trigger)
        ):
            yield "objective.output_preservation needs both names: set `trigger` and `class_noun`"

    def _keys_without_slider(self) -> list[str]:
        parts = ("masked_loss", "output_preservation")
        values = {f"objective.{part}": getattr(self.objective, part) for part in parts}
        values |= {"class_images": self.class_images, "textual_inversion": self.textual_inversion}
        values |= {"adapter.text_encoder": self.adapter.text_encoder}
        values |= {"the list of concepts": isinstance(self.dataset, tuple)}
        values |= {"caption_use": self.caption_use != CaptionUse()}
        return [key for key, value in values.items() if value]

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts of the dataset, each with its `caption_use`; one if the dataset is a folder."""
        if isinstance(self.dataset, tuple):
            default = {"caption_use": self.caption_use}
            return tuple(c if c.caption_use else c.model_copy(update=default) for c in self.dataset)
        return (
            Concept(
                folder=self.dataset,
                trigger=self.trigger,
                class_noun=self.class_noun,
                class_images=self.class_images,
                caption_use=self.caption_use,
            ),
        )

    @property
    def triggers(self) -> tuple[str, ...]:
        """The trigger words of all concepts."""
        return unique_triggers(self.concepts)

    @property
    def data_folders(self) -> dict[str, Path]:
        """The folders of images that decide the adapter, by the recipe key that names them."""
        if not isinstance(self.dataset, tuple):
            folders = {"dataset": self.dataset, "class_images": self.class_images}
        else:
            keys = ("folder", "class_images")
            concepts = enumerate(self.dataset)
            folders = {f"dataset.{i}.{key}": getattr(concept, key) for i, concept in concepts for key in keys}
        return {key: folder for key, folder in folders.items() if folder is not None}

    def dump(self) -> dict[str, Any]:
        """Return the recipe as plain values, as they are written into recipe.yaml and run.json."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def memory_config(self) -> MemoryConfig:
        """The section `memory`, with keys that are None where the planner decides."""
        return self.memory if isinstance(self.memory, MemoryConfig) else MemoryConfig()

    @property
    def tracker_config(self) -> TrackerConfig:
        """The section `tracker`, also if the recipe names only a tracker."""
        return self.tracker if isinstance(self.tracker, TrackerConfig) else TrackerConfig(name=self.tracker)

    @property
    def effective_batch(self) -> int:
        """Images per optimizer step and process."""
        return self.train.batch_size * self.train.accumulate


__all__ = [
    "MAX_RANK",
    "AdapterConfig",
    "SliderConfig",
    "TextualInversionConfig",
]  # sections of a recipe, imported from here

# Keys that change no byte of the adapter: a run may be resumed with other values. The base model, the dataset
# and the initial adapter may move to another path: their content is compared by hash.
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
    "train.keep_optimizer_states",
    "train.cuda_graph",
    "validate.every",
    "validate.folder",
    "memory.keep_text_encoders",
    "memory.stream",
    "memory.shard",
    "memory.gradient_checkpointing",
    "memory.offload_activations",
    "memory.offload_modulation",
)
CONCEPT_PATHS = ("folder", "class_images")  # keys of a concept that may move, too


def training_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the flat settings that determine the adapter: {"optimizer.lr": 0.0001, ...}."""
    memory = MemoryConfig() if recipe.memory == "auto" else recipe.memory
    flat = _flatten(recipe.model_copy(update={"memory": memory}).dump())
    concepts = recipe.dataset if isinstance(recipe.dataset, tuple) else ()
    flat_concepts: dict[str, Any] = {}
    for number, concept in enumerate(concepts):
        values = concept.model_dump(mode="json", exclude=set(CONCEPT_PATHS))
        flat_concepts |= _flatten(values, f"dataset.{number}.")
    return flat_concepts | {
        key: flat[key]
        for key in flat
        if not any(key == f or key.startswith(f + ".") for f in NON_TRAINING_KEYS)
    }


def recipe_hash(recipe: Recipe) -> str:
    """Return the SHA-256 of the training settings."""
    return sha256_bytes(dump_json(training_settings(recipe)).encode())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply dotted overrides such as `optimizer.lr=2e-4`.

    `path` is a file or the name of a built-in recipe, such as `sd15`; see `find_recipe`.
    Raises ConfigError that lists every problem.
    """
    file = find_recipe(path)
    return parse_recipe(read_recipe_tree(file, overrides or []), str(file))


def read_recipe_tree(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a recipe with overrides as plain values that are not validated yet."""
    file = find_recipe(path)
    tree = _read_tree(file)
    _resolve_prompts(tree, file)
    for override in _tracker_first(overrides):
        _override(tree, override)
    return tree


def resolve_recipe(recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe, **settings: Any) -> Recipe:
    """Return a recipe from a built-in name, a file, plain values or a recipe, with some settings changed.

    A setting is a top-level key (`out="runs/dog"`); the keys of a section are merged into it
    (`optimizer={"lr": 2e-4}`). Raises ConfigError that lists every problem.
    """
    if isinstance(recipe, Recipe):
        tree, where = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True), "recipe"
    elif isinstance(recipe, Mapping):
        tree, where = dict(recipe), "recipe"
    else:
        file = find_recipe(Path(recipe))
        tree, where = _read_tree(file), str(file)
        _resolve_prompts(tree, file)
    for key, value in settings.items():
        section = tree.get(key)
        if key == "tracker":
            value = merge_tracker(section, value)
        elif isinstance(section, dict) and isinstance(value, Mapping):
            value = {**section, **value}
        tree[key] = value
    return parse_recipe(tree, where)


def change_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with overrides such as `optimizer.lr=2e-4`; ConfigError if they do not suit it."""
    tree = recipe.dump()
    for override in _tracker_first(overrides):
        _override(tree, override)
    return parse_recipe(tree)


def _read_tree(file: Path) -> dict[str, Any]:
    is_toml = file.suffix.lower() == ".toml"
    tree = recipe_files.read_toml(file) if is_toml else strict_yaml.read_yaml(file)
    recipe_files.check_is_recipe(tree, file)
    return tree


def _resolve_prompts(tree: dict[str, Any], file: Path) -> None:
    """Find the prompt file of a recipe beside the recipe's folder if the working folder does not have it.

    The built-in recipes name `examples/prompts.jsonl`, which lies beside `recipes`, also when installed.
    """
    samples = tree.get("samples")
    if not isinstance(samples, dict) or not isinstance(samples.get("prompts"), str):
        return
    shipped = file.resolve().parent.parent / samples["prompts"]
    if shipped.is_file() and not Path(samples["prompts"]).exists():
        tree["samples"] = {**samples, "prompts": str(shipped)}


def _tracker_first(overrides: Sequence[str]) -> list[str]:
    """Sort `tracker=...` before `tracker.project=...`, which belongs to it in any order."""
    return sorted(overrides, key=lambda text: not text.startswith("tracker="))


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        meant = explain_setting(text, None, validation_errors.known_keys(Recipe))
        remedy = f"write {meant.write}" if meant and meant.write else "for instance optimizer.lr=2e-4"
        raise ConfigError(f"{text!r} is not of the form key=value", remedy=remedy)
    *parents, last = key.split(".")
    node = tree
    if parents and parents[0] == "dataset":
        node, parents = concept_to_change(tree.get("dataset"), key), parents[2:]
    for parent in parents:
        below = node.setdefault(parent, {})
        if not isinstance(below, dict):
            node[parent] = below = {"name": below} if parent == "tracker" else {}
        node = below
    parsed, before = strict_yaml.parse_yaml(value, f"override {key}"), node.get(last)
    if key == "tracker":
        parsed = merge_tracker(before, parsed)
    elif node is tree and isinstance(parsed, dict) and isinstance(before, dict):
        parsed = {**before, **parsed}  # the other keys of the section keep their values
    node[last] = parsed


def parse_recipe(tree: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain values. Raises one ConfigError that lists every problem."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = validation_errors.format_validation_errors(error, Recipe, tree)
        raise ConfigError("the recipe has a problem:\n  " + "\n  ".join(lines), where=where) from error
