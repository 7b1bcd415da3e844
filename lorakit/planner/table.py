"""The table of the README: 12 published models on cards of 6 to 24 GB, each with the settings that fit.

`python -m lorakit.planner.table` prints it.
"""

from __future__ import annotations

from lorakit.models.families.published_models import PUBLISHED_MODELS
from lorakit.models.memory import MemorySettings
from lorakit.planner.choice import Choice, choose
from lorakit.planner.demand import RunDemand
from lorakit.planner.machine import Machine, machine_with_memory
from lorakit.planner.published import stored_counts

CARD_GIB = (6, 8, 12, 16, 24)
GIB = 1 << 30


def plan_model(key: str, machine: Machine) -> Choice:
    """Plan a published model at its usual size, one image at once."""
    return choose(RunDemand(stored_counts()[key]), machine)


def describe_settings(settings: MemorySettings) -> str:
    """Return the settings that are on, in a few words."""
    words: list[str | None] = [settings.quantize] if settings.quantize else []
    if settings.stream:
        words.append(f"stream {settings.stream:g}")
    if settings.gradient_checkpointing:
        words.append(f"checkpoint {settings.gradient_checkpointing:g}")
    if settings.offload_activations:
        words.append("offload activations")
    if settings.offload_modulation:
        words.append("offload modulation")
    return ", ".join(word for word in words if word) or "nothing"


def table_lines() -> list[str]:
    """Return the lines of the table in Markdown: predicted peak memory, and the settings."""
    head = ["model", "pixels", *(f"{gib} GB" for gib in CARD_GIB)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in PUBLISHED_MODELS:
        cells = [model.title, str(model.resolution)]
        for gib in CARD_GIB:
            best = plan_model(model.key, machine_with_memory(gib)).best
            size = f"{best.footprint.total / GIB:.1f}"
            cells.append(f"{size}: {describe_settings(best.settings)}" if best.fits else f"no: needs {size}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table_lines()))
