"""Values of other trainers in lorakit's words, by recipe key: names of optimizers, precisions, schedules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class NoEqualError(Exception):
    """A value that no value of the recipe key has the meaning of; the text says so in one sentence."""


class Converted(NamedTuple):
    """A value for the recipe, and what differs from the file, if anything does."""

    value: Any
    remark: str = ""


_PRECISIONS = {
    "bf16": "bf16", "bfloat16": "bf16", "bfloat_16": "bf16", "no": "fp32", "fp32": "fp32", "float": "fp32",
    "float32": "fp32", "float_32": "fp32", "tfloat_32": "fp32", "fp16": "fp16", "float16": "fp16",
    "float_16": "fp16",
}  # fmt: skip
_SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine",
    "cosine_with_restarts": "cosine_restarts", "cosine_with_min_lr": "cosine", "linear": "linear",
    "polynomial": "polynomial", "rex": "rex", "cosine_restarts": "cosine_restarts",
    "cosine_with_hard_restarts": "cosine_restarts",
}  # fmt: skip
# The optimizers of each trainer, in lower case without signs between words, and what differs in lorakit's.
_ROUNDED = "its rounding to bf16 is not needed: the optimizer keeps the adapter in fp32"
_OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw": ("adamw", ""),
    "adam": ("torch.optim.Adam", ""),
    "torchadamw": ("adamw", ""),
    "adamwoptimi": ("adamw", _ROUNDED),
    "optimiadamw": ("adamw", _ROUNDED),
    "adamwbf16": ("adamw", _ROUNDED),
    "adamw8bit": ("adamw8bit", ""),
    "adamw8bitkahan": ("adamw8bit", _ROUNDED),
    "bnbadamw8bit": ("adamw8bit", ""),
    "aoadamw8bit": ("adamw8bit", "in 8 bits by bitsandbytes"),
    "pagedadamw8bit": ("paged_adamw8bit", ""),
    "pagedadamw": ("paged_adamw8bit", "in 8 bits"),
    "adam8bit": ("adamw8bit", "with decoupled weight decay"),
    "lion": ("lion", ""),
    "optimilion": ("lion", _ROUNDED),
    "lion8bit": ("lion8bit", ""),
    "bnblion8bit": ("lion8bit", ""),
    "pagedlion8bit": ("paged_lion8bit", ""),
    "bnblion8bitpaged": ("paged_lion8bit", ""),
    "bnbadamw8bitpaged": ("paged_adamw8bit", ""),
    "ademamix8bit": ("ademamix8bit", ""),
    "bnbademamix8bit": ("ademamix8bit", ""),
    "ademamix": ("ademamix8bit", "in 8 bits"),
    "adafactor": ("adafactor", ""),
    "came": ("came", ""),
    "came8bit": ("came", "not in 8 bits"),
    "prodigy": ("prodigy", ""),
    "prodigyplusschedulefree": ("prodigy", "with a schedule"),
    "muon": ("muon", ""),
    "schedulefreeadamw": ("schedulefree_adamw", ""),
    "adamwschedulefree": ("schedulefree_adamw", ""),
    "adamwschedulefreekahan": ("schedulefree_adamw", _ROUNDED),
}
_WEIGHTINGS = {
    "none": "none", "uniform": "none", "constant": "none", "min_snr": "min_snr", "min_snr_gamma": "min_snr",
    "debiased_estimation": "debiased", "debiased": "debiased", "sigma_sqrt": "sigma_sqrt", "cosmap": "cosmap",
}  # fmt: skip
_TRACKERS = {"wandb", "tensorboard", "mlflow", "comet_ml", "clearml", "swanlab", "trackio", "aim", "dvclive"}


def convert(key: str, value: Any) -> Converted:
    """Return a value of another trainer as the recipe key takes it; NoEqualError if it has no equal."""
    converter = _CONVERTERS.get(key)
    return converter(value) if converter else Converted(value)


def _from_table(table: Mapping[str, str], kind: str) -> Any:
    def read(value: Any) -> Converted:
        name = str(value).strip().lower().replace("-", "_")
        if name not in table:
            raise NoEqualError(f"lorakit has no such {kind}")
        return Converted(table[name])

    return read


def _optimizer(value: Any) -> Converted:
    name = re.sub(r"[^a-z0-9]", "", str(value).rpartition(".")[2].lower())
    if name in _OPTIMIZERS:
        return Converted(*_OPTIMIZERS[name])
    if re.fullmatch(r"\w+(\.\w+)+", str(value)):  # a class by its dotted name
        return Converted(str(value))
    raise NoEqualError("lorakit has no such optimizer; name a class by its dotted name to use another")


def quantization(value: Any) -> Converted:
    """Return the format of the frozen base for a format's name in any trainer."""
    name = str(value).lower().partition("|")[0]
    if name in ("true", "1"):
        return Converted("fp8", "there it means 8 bits")
    if re.search(r"nf4|nfloat_4|int4|fp4|float4|gguf|4bit", name):
        return Converted("nf4", "" if "nf" in name else "the 4-bit format is nf4")
    if re.search(r"(int|uint)[2356]", name):
        return Converted("nf4", "4 bits are the fewest")
    if re.search(r"float8|fp8|float_8|float_w8a8|float_w8|e4m3|e5m2", name):
        return Converted("fp8")
    if re.search(r"int8|int_8|int_w8a8", name):
        return Converted("int8")
    if re.search(r"^(none|no|no_change|bf16|bfloat16|bfloat_16|float_?16|fp16|float_?32|fp32)$", name):
        raise NoEqualError("left to lorakit's planner (memory: auto)")
    raise NoEqualError("lorakit has no such format; memory.quantize is nf4, int8 or fp8")


def _number(value: Any) -> Converted:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise NoEqualError("not a number") from None
    return Converted(int(number) if number.is_integer() and "e" not in str(value).lower() else number)


def _resolution(value: Any) -> Converted:
    """Return the side of a square of the same area: `1024`, `1024,768`, `1024x768` or a list."""
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", str(value))]
    if not numbers:
        raise NoEqualError("not a size in pixels")
    if len(set(numbers)) == 1:
        side = numbers[0]
    elif len(numbers) == 2 and not isinstance(value, list):
        side = round((numbers[0] * numbers[1]) ** 0.5)
        return Converted(int(side), "the side of the square with this area")
    else:
        return Converted(int(max(numbers)), "one resolution, the largest")
    return (
        Converted(int(side))
        if side >= 8
        else Converted(round(side**0.5 * 1000), "an area in megapixels, as the side of its square")
    )


def _tracker(value: Any) -> Converted:
    name = str(value).lower().replace("all", "wandb")
    if name in ("none", "no"):
        return Converted("none")
    if name not in _TRACKERS:
        raise NoEqualError("lorakit has no such tracker")
    return Converted(name)


_PRECISION = _from_table(_PRECISIONS, "precision")
_CONVERTERS: dict[str, Any] = {
    "train.precision": _PRECISION,
    "optimizer.name": _optimizer,
    "optimizer.schedule": _from_table(_SCHEDULES, "schedule"),
    "objective.weighting": _from_table(_WEIGHTINGS, "loss weighting"),
    "memory.quantize": quantization,
    "resolution": _resolution,
    "tracker": _tracker,
} | dict.fromkeys(
    (
        "optimizer.lr", "optimizer.warmup", "optimizer.weight_decay", "optimizer.max_grad_norm",
        "optimizer.min_lr_ratio", "optimizer.cycles", "optimizer.power", "optimizer.loraplus_lr_ratio",
        "adapter.rank", "adapter.alpha", "adapter.conv_rank", "adapter.factor", "adapter.text_encoder_lr",
        "train.steps", "train.batch_size", "train.accumulate", "train.seed", "train.save_every",
        "train.ema_decay", "train.keep_optimizer_states", "objective.min_snr_gamma", "objective.noise_offset",
        "objective.logit_mean", "objective.logit_std", "objective.mode_scale", "objective.prior_loss_weight",
        "caption_use.caption_dropout", "caption_use.tag_dropout", "caption_use.keep_first", "frames",
        "samples.every", "samples.num_inference_steps", "samples.guidance_scale", "validate.fraction",
    ),
    _number,
)  # fmt: skip
