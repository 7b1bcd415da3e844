"""The table of families and the programs that load their adapters, as the guide shows it."""

from __future__ import annotations

from lorakit.adapters.formats.consumers.answers import ALL_CONSUMERS, rule_for
from lorakit.models import families

_NOT_SHOWN = ("forge",)  # A1111's column stands for both


def readers(family: str) -> list[str]:
    """Return the names of the programs that load adapters of a family, or train them further."""
    return [
        consumer.title
        for name, consumer in ALL_CONSUMERS.items()
        if name not in _NOT_SHOWN and (rule := rule_for(family, name)) is not None and rule.layouts
    ]


def markdown_table() -> str:
    """Return the table in Markdown, with the versions whose rules it states."""
    lines = ["| family | models | adapters load in |", "|---|---|---|"]
    for family in sorted(families.FAMILIES, key=lambda one: f"{one.name}`"):
        lines.append(f"| `{family.name}` | {family.title} | {', '.join(readers(family.name))} |")
    versions = ", ".join(
        f"{consumer.title} {consumer.version}"
        for name, consumer in ALL_CONSUMERS.items()
        if name not in _NOT_SHOWN
    )
    return "\n".join([*lines, "", f"By the rules of {versions}.", ""])


if __name__ == "__main__":
    print(markdown_table())
