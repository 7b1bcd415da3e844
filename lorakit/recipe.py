"""The typed recipe: one YAML file is one run.

Every key is declared here; an unknown key, a misspelt value or an impossible number is one error that names
the key and the nearest valid spelling, raised before anything is loaded.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorakit.errors import ConfigError
from lorakit.storage import dump_json, sha256_bytes

SIZE_LIMIT = 256 << 10  # bytes; a recipe is a page, not a data set

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the recipe: closed to unknown keys, frozen once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Adapter(Section):
    """What is trained."""

    type: Literal["lora"] = "lora"
    """Kind of adapter."""
    rank: Positive = 16
    """Rank of the low-rank update."""
    alpha: Rate = 16
    """The update is scaled by alpha / rank."""
    targets: Literal["attention"] | list[str] = "attention"
    """`attention` (the family's own rule) or a list of module-name endings."""
    text_encoder: Literal[False] = False
    """Text encoders stay frozen."""


class Optimizer(Section):
    """How it is trained."""

    name: Literal["adamw8bit", "adamw"] = "adamw8bit"
    """`adamw8bit` keeps its moments in 8 bits (bitsandbytes); `adamw` in 32."""
    lr: Rate = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up; cosine and linear end at zero."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moments."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Decoupled weight decay."""
    clip: Rate = 1.0
    """Gradients are scaled down to this global norm."""


class Train(Section):
    """How long, how much at once, and what is kept."""

    steps: Positive = 1500
    """Optimizer steps in all."""
    batch_size: Positive = 1
    """Images per forward pass and process."""
    accumulate: Positive = 1
    """Forward passes per optimizer step."""
    seed: Annotated[int, Field(ge=0)] = 0
    """All randomness is a function of it."""
    save_every: Positive = 250
    """Steps between checkpoints: the most that a crash can cost."""
    keep: Positive = 3
    """Checkpoints kept."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the frozen base; the adapter itself stays fp32."""
    deterministic: bool = False
    """On a GPU, ask torch for algorithms that give the same bits each time; a CPU does so anyway."""


class Objective(Section):
    """Overrides of what is otherwise read from the base model."""

    timesteps: Literal["auto", "uniform", "logit-normal"] = "auto"
    """Distribution of the noise level; auto is uniform for ddpm and logit-normal for flow matching."""
    shift: Rate | None = None
    """Flow matching only: shift of the noise level towards noise; none means the base's own static shift."""


class Memory(Section):
    """Trades of memory for time."""

    checkpoint: Annotated[float, Field(ge=0, le=1)] = 0.0
    """1 recomputes activations in the backward pass, 0 keeps them."""

    @model_validator(mode="after")
    def _whole(self) -> Memory:
        if self.checkpoint not in (0.0, 1.0):
            raise ValueError("checkpoint must be 0 or 1: a fraction of the blocks is not supported yet")
        return self


class Samples(Section):
    """Pictures made during training from fixed prompts with fixed noise."""

    prompts: Path | None = None
    """Prompt file (JSONL, YAML, TSV or text); none makes no samples."""
    every: Positive = 250
    """Steps between sampling; a multiple of it is sampled after its commit."""
    steps: Positive = 20
    """Sampler steps."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """Classifier-free guidance; none means the pipeline's default."""


class Validate(Section):
    """Loss on images that are not trained on."""

    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the images held out."""
    every: Positive = 250
    """Steps between measurements."""


class Recipe(Section):
    """One run."""

    base: str
    """Embedded name (tiny-unet, tiny-dit), a local diffusers folder, or a hub id, best as id@revision."""
    dataset: Path
    """A folder with manifest.jsonl, or a plain folder of images, which is then prepared on the way."""
    out: Path
    """The run's folder."""
    init_from: Path | None = None
    """A new run that starts from the weights of an adapter: a file written by lorakit, or a run's folder."""
    resolution: Annotated[int, Field(ge=16)] = 1024
    """Pixels of a square picture's side; other shapes have about the same area."""
    trigger: str | None = None
    """The word the concept is taught under; used when captions must be made, and recorded in exports."""
    class_noun: str | None = None
    """What the subject is ("dog"); used when captions must be made."""
    adapter: Adapter = Adapter()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    objective: Objective = Objective()
    memory: Literal["auto"] | Memory = "auto"
    """`auto` recomputes activations only on a GPU, or a section."""
    samples: Samples = Samples()
    validate_: Validate = Field(default=Validate(), alias="validate")
    tracker: Literal["none", "wandb", "tensorboard"] = "none"
    """Where metrics also go; metrics.jsonl is always written."""
    export: list[Literal["comfyui", "a1111", "diffusers"]] = ["comfyui"]
    """Which tools the finished adapter is exported for."""

    @model_validator(mode="before")
    @classmethod
    def _no_blanks(cls, values: Any) -> Any:
        for key in ("base", "dataset", "out"):
            value = values.get(key) if isinstance(values, dict) else None
            if isinstance(value, str) and (value != value.strip() or not value):
                raise ValueError(f"{key}: {value!r} is empty or begins or ends with a blank")
        return values

    def dump(self) -> dict[str, Any]:
        """Plain values as they go into recipe.yaml and run.json."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def effective_batch(self) -> int:
        """Images per optimizer step and process."""
        return self.train.batch_size * self.train.accumulate


# Keys that change what is shown or kept, not one byte of the adapter: a run may go on with other values.
# Base, dataset and first adapter may move: their content is what a run holds on to, by hash.
FREE_KEYS = (
    "out",
    "base",
    "dataset",
    "init_from",
    "samples",
    "tracker",
    "export",
    "train.save_every",
    "train.keep",
    "validate.every",
)


def identity(recipe: Recipe) -> dict[str, Any]:
    """The flat settings that decide the adapter's bytes: {"optimizer.lr": 0.0001, ...}."""
    flat = _flatten(recipe.dump())
    return {key: flat[key] for key in flat if not any(key == f or key.startswith(f + ".") for f in FREE_KEYS)}


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of `identity`."""
    return sha256_bytes(dump_json(identity(recipe)).encode())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


class _Loader(yaml.SafeLoader):
    """YAML without aliases (no expansion bombs), without duplicate keys, and with 1e-4 read as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases (*name) are not accepted", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse a small YAML text safely; the error names the place."""
    if len(text) > SIZE_LIMIT:
        raise ConfigError(f"a recipe has at most {SIZE_LIMIT >> 10} KiB", where=where)
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not valid YAML: {error}", where=where) from error


def folder() -> Path:
    """Where the recipes that ship lie: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file with dotted overrides such as `optimizer.lr=2e-4`."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            "there is no such recipe", where=str(path), remedy="`lorakit recipes` lists the ones that ship"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"not UTF-8 at byte {error.start}", where=str(path), remedy="save the file as UTF-8"
        ) from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError("a recipe is a mapping of keys to values", where=str(path))
    for override in overrides or []:
        _override(tree, override)
    return parse(tree, str(path))


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
    node[last] = parse_yaml(value, f"override {key}")


def parse(tree: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate plain values; all problems are listed in one `ConfigError`."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(dict(item)) for item in error.errors()))
        raise ConfigError("the recipe has a problem:\n  " + "\n  ".join(lines), where=where) from error


def _explain(item: dict[str, Any]) -> str:
    """One line for one of pydantic's findings, with the nearest valid spelling."""
    path = [str(part) for part in item["loc"] if not _is_branch(str(part))]
    key, given, kind = ".".join(path), item["input"], item["type"]
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_nearest(path[-1], _known_keys(path[:-1]))}"
    if kind == "missing":
        return f"{key}: this key is required"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", item["ctx"]["expected"]) or [str(item["ctx"]["expected"])]
        return f"{key}: {given!r} is not one of {', '.join(allowed)}{_nearest(str(given).strip(), allowed)}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (given: {given!r})" if key and not isinstance(given, dict) else message


def _is_branch(part: str) -> bool:
    """Pydantic names the branch of a union in the path: `memory.Memory.checkpoint`, `targets.list[str]`."""
    return part.startswith(("literal[", "list[", "Memory", "function-"))


def _known_keys(path: list[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in path:
        field = next((f for n, f in section.model_fields.items() if part in (n, f.alias)), None)
        options = [field.annotation, *get_args(field.annotation)] if field else []
        found = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if found is None:
            return []
        section = found
    return [field.alias or name for name, field in section.model_fields.items()]


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}" if known else ""
