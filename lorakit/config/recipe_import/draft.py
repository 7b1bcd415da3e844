"""A recipe while it is made from another trainer's settings; each of those is used or named with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorakit.config.other_trainers import EPOCH_NAMES, EXPLANATIONS, OTHER_NAMES, OTHER_SWITCHES
from lorakit.config.recipe_import.values import NoEqualError, convert

_LEAVE_OUT = "leave it out: "
_TARGETS_REMARK = "the modules that this trainer adapts; `attention` is lorakit's default"
NO_FILE = "this file is not there; give `dataset` the folder of the images"
UNKNOWN = "lorakit has no such setting"


@dataclass(frozen=True)
class Note:
    """A setting of the file that the recipe does not contain, or only in part, with the reason."""

    setting: str
    value: Any
    text: str
    needed: bool = True
    """False for a setting that has no meaning here, or whose work lorakit does by itself."""


@dataclass(frozen=True)
class Without:
    """The rule of a setting that no recipe key has: the reason, or what to do instead."""

    text: str
    needed: bool = True


def not_needed(text: str) -> Without:
    """Return the rule of a setting that has no meaning here, or whose work lorakit does by itself."""
    return Without(text, needed=False)


# Settings that trainers call as lorakit does, and short names.
_OWN_NAMES = {
    "trigger": "trigger", "class_noun": "class_noun", "frames": "frames", "rank": "adapter.rank",
    "alpha": "adapter.alpha", "optimizer": "optimizer.name", "betas": "optimizer.betas",
    "weight_decay": "optimizer.weight_decay", "max_grad_norm": "optimizer.max_grad_norm",
    "warmup": "optimizer.warmup", "steps": "train.steps", "batch_size": "train.batch_size",
    "accumulate": "train.accumulate", "seed": "train.seed", "save_every": "train.save_every",
    "ema_decay": "train.ema_decay", "min_snr_gamma": "objective.min_snr_gamma",
    "noise_offset": "objective.noise_offset", "prior_loss_weight": "objective.prior_loss_weight",
    "prior_loss_strength": "objective.prior_loss_weight", "resolution": "resolution",
    "num_inference_steps": "samples.num_inference_steps", "caption_dropout": "caption_use.caption_dropout",
    "base": "base", "out": "out",
}  # fmt: skip
Rule = str | Without | Callable[["Draft", str, Any], None]
"""A recipe key, a reason, or a function that takes the draft, the name of the setting and its value."""


@dataclass
class Draft:
    """The settings that are not used yet, and the recipe so far, both with dotted names."""

    settings: dict[str, Any]
    recipe: dict[str, Any] = field(default_factory=dict)
    concepts: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    remarks: dict[str, str] = field(default_factory=dict)
    """Remarks on the recipe's own lines, by key."""
    off: list[str] = field(default_factory=list)
    """Settings without an equal that are off in the file: false, empty or zero."""
    epochs: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """The setting and its number of epochs, by the recipe key that counts steps."""
    problems: list[str] = field(default_factory=list)
    """Contradictions of the recipe that the user has to solve."""

    def take(self, *names: str, default: Any = None) -> Any:
        """Return the value of the first setting of these names that the file has; all count as used."""
        values = [self.settings.pop(name) for name in names if name in self.settings]
        return next((value for value in values if value is not None), default)

    def take_section(self, prefix: str) -> dict[str, Any]:
        """Return the settings whose name starts with `prefix.`, without it; they count as used."""
        names = [name for name in self.settings if name.startswith(f"{prefix}.")]
        return {name[len(prefix) + 1 :]: self.settings.pop(name) for name in names}

    def put(self, key: str, setting: str, value: Any) -> None:
        """Set a recipe key from a setting, in lorakit's words; a value without an equal is noted."""
        if value is None or value == "":
            return
        try:
            converted = convert(key, value)
        except NoEqualError as error:
            self.note(setting, value, str(error))
            return
        self.recipe[key] = converted.value
        if converted.remark:
            self.remarks[key] = f"{setting} {value}: {converted.remark}"

    def put_targets(self, targets: list[str]) -> None:
        """Set the modules that the other trainer adapts, with a remark."""
        self.recipe["adapter.targets"] = targets
        self.remarks["adapter.targets"] = _TARGETS_REMARK

    def put_method(self, setting: str, name: str, methods: Mapping[str, str]) -> None:
        """Set the adapter method; one that is not among `methods` becomes LoRA, with a note."""
        self.recipe["adapter.type"] = methods.get(name, "lora")
        if name not in methods:
            self.note(setting, name, "lorakit has no such method; the recipe trains a LoRA")

    def pass_over(self, names: Iterable[str], text: str) -> None:
        """Note settings that have no meaning in the recipe beside those that it has, with the reason."""
        for name in names:
            if name in self.settings:
                self.note(name, self.settings.pop(name), text, needed=False)

    def note(self, setting: str, value: Any, text: str, *, needed: bool = True) -> None:
        """Add a note; a setting that is off in the file is only listed."""
        if is_off(value):
            self.off.append(setting)
        else:
            self.notes.append(Note(setting, value, text, needed))

    def apply(self, rules: Mapping[str, Rule]) -> None:
        """Use all remaining settings: by these rules, then by the names that trainers share."""
        for setting in list(self.settings):
            if setting not in self.settings:  # used by the rule of another setting
                continue
            value = self.settings.pop(setting)
            last = setting.rpartition(".")[2].lower().replace("-", "_")
            if (key := epoch_key(last)) and not is_off(value):
                self.epochs[key] = (setting, value)
                continue
            self._use(setting, value, rules.get(setting) or rules.get(last) or _shared_rule(last, value))

    def _use(self, setting: str, value: Any, rule: Rule) -> None:
        if isinstance(rule, Without):
            self.note(setting, value, rule.text, needed=rule.needed)
        elif not isinstance(rule, str):
            rule(self, setting, value)
        elif rule in self.recipe:
            self.note(setting, value, f"{rule} is already set by another setting of the file")
        else:
            self.put(rule, setting, value)


def epoch_key(name: str) -> str | None:
    """Return the recipe key that counts steps for a setting that counts epochs."""
    if name in EPOCH_NAMES:
        return "train.steps"
    every = {"save_every_n_epochs": "train.save_every", "sample_every_n_epochs": "samples.every"}
    return every.get(name)


def is_off(value: Any) -> bool:
    """Return True for a value with which a setting that lorakit does not know does nothing."""
    off = (None, False, 0, "", "none", "None", "off", "false")
    return value == [] or value == {} or any(value is one or value == one for one in off)


def _shared_rule(name: str, value: Any) -> Rule:
    """Return the rule for a setting that several trainers call `name`."""
    if name in OTHER_SWITCHES:
        key, _, text = OTHER_SWITCHES[name].partition("=")
        if value is True:
            return lambda draft, setting, _: draft.recipe.setdefault(key, switch_value(text))
        return Without("")
    if name in EXPLANATIONS:
        text = EXPLANATIONS[name]
        return Without(text.removeprefix(_LEAVE_OUT), needed=not text.startswith(_LEAVE_OUT))
    return OTHER_NAMES.get(name) or _OWN_NAMES.get(name) or Without(UNKNOWN)


def switch_value(text: str) -> Any:
    """Return the value of a switch: `true`, a number or a word."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
