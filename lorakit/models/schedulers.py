"""Samplers by name: another scheduler of diffusers on the same pipeline, its noise schedule kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lorakit.core.errors import ConfigError

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


def check_sampler(objective: str, name: str) -> None:
    """Refuse a sampler that does not exist for this kind of model."""
    if name not in SAMPLERS[objective]:
        raise ConfigError(
            f"there is no sampler {name!r} for {objective} models",
            where="--sampler",
            remedy=f"one of {', '.join(SAMPLERS[objective])}",
        )


@contextmanager
def use_sampler(pipe: Any, objective: str, name: str | None) -> Iterator[None]:
    """The pipeline with another sampler for a while; None leaves it as the base was published."""
    if name is None:
        yield
        return
    check_sampler(objective, name)
    import diffusers

    kind, settings = SAMPLERS[objective][name]
    own = pipe.scheduler
    shift = _shift_argument(own.config, "flow_shift" if "use_flow_sigmas" in settings else "shift", objective)
    pipe.scheduler = getattr(diffusers, kind).from_config(own.config, **settings, **shift)
    try:
        yield
    finally:
        pipe.scheduler = own


def _shift_argument(config: Mapping[str, Any], name: str, objective: str) -> dict[str, Any]:
    """The base's own shift of noise levels, which schedulers call by one of two names."""
    known = config.get("shift", config.get("flow_shift"))
    return {} if objective != "flow" or known is None else {name: known}
