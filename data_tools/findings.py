"""Findings of the checks: level, code, message and files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lorakit.core.visible_text import escape_name

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that a check found. `code` is stable, for scripts; `files` are relative paths."""

    level: Level
    code: str
    message: str
    files: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return {**asdict(self), "files": list(self.files)}

    def __str__(self) -> str:
        files = ", ".join(map(escape_name, self.files[:4]))
        more = f" and {len(self.files) - 4} more" if len(self.files) > 4 else ""
        return f"{self.level:7} {self.code}: {escape_name(self.message)}" + (
            f" [{files}{more}]" if files else ""
        )


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by level (worst first), code and files, so that equal data give equal reports."""
    return sorted(findings, key=lambda f: (LEVELS.index(f.level), f.code, f.message, f.files))


def count_by_level(findings: Iterable[Finding]) -> dict[str, int]:
    """Return the number of findings of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in LEVELS}


def pluralize(number: int, noun: str) -> str:
    """Return the number and the noun: "1 note", "2 notes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def any_at_level(findings: Iterable[Finding], level: str) -> bool:
    """Return True if any finding is at least as bad as `level`; always False for "never"."""
    if level not in LEVELS:
        return False
    worst = LEVELS[: LEVELS.index(level) + 1]
    return any(finding.level in worst for finding in findings)
