"""Samplers by name: another diffusers scheduler for the same pipeline, with the same noise schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean

SAMPLERS: Mapping[str, Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "ddpm": {
        "ddim": ("DDIMScheduler", {}),
        "ddpm": ("DDPMScheduler", {}),
        "dpm++2m": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
        "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        "euler": ("EulerDiscreteScheduler", {}),
        "euler-a": ("EulerAncestralDiscreteScheduler", {}),
        "heun": ("HeunDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {}),
    },
    "flow": {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "heun": ("FlowMatchHeunDiscreteScheduler", {}),
        "dpm++2m": (
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        ),
        "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    },
}
"""By objective: name -> (diffusers class, settings that differ from the base's own scheduler)."""

_INFOTEXT_NAMES = {
    "DDIMScheduler": "DDIM",
    "DDPMScheduler": "DDPM",
    "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "FlowMatchHeunDiscreteScheduler": "Heun",
    "HeunDiscreteScheduler": "Heun",
    "LCMScheduler": "LCM",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def infotext_name(pipe: Any, objective: str, name: str | None) -> str:
    """Return A1111's name of a sampler, None being the pipeline's own; other classes keep theirs."""
    if name is None:
        class_name, settings = type(pipe.scheduler).__name__, pipe.scheduler.config
    else:
        class_name, settings = SAMPLERS[objective][name]
    if class_name != "DPMSolverMultistepScheduler":
        return _INFOTEXT_NAMES.get(class_name, class_name)
    kind = " SDE" if str(settings.get("algorithm_type", "")).startswith("sde") else ""
    return f"DPM++ 2M{kind}{' Karras' if settings.get('use_karras_sigmas') else ''}"


def check_sampler(objective: str, name: str) -> None:
    """Raise ConfigError for a sampler that does not exist for this objective ("ddpm" or "flow")."""
    if name not in SAMPLERS[objective]:
        raise ConfigError(
            f"there is no sampler {name!r} for {objective} models{did_you_mean(name, SAMPLERS[objective])}",
            where="--sampler",
            remedy=f"one of {', '.join(SAMPLERS[objective])}",
        )


@contextmanager
def use_sampler(pipe: Any, objective: str, name: str | None) -> Iterator[None]:
    """Give the pipeline another sampler within the context; None keeps the published one."""
    if name is None:
        yield
        return
    check_sampler(objective, name)
    import diffusers

    class_name, settings = SAMPLERS[objective][name]
    published = pipe.scheduler
    shift = _shift_argument(
        published.config, "flow_shift" if "use_flow_sigmas" in settings else "shift", objective
    )
    pipe.scheduler = getattr(diffusers, class_name).from_config(published.config, **settings, **shift)
    try:
        yield
    finally:
        pipe.scheduler = published


def _shift_argument(config: Mapping[str, Any], name: str, objective: str) -> dict[str, Any]:
    """Return the published shift of noise levels; schedulers have one of two names for it."""
    shift = config.get("shift", config.get("flow_shift"))
    return {} if objective != "flow" or shift is None else {name: shift}
