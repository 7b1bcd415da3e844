"""One thing that a check found: how bad, what, and in which files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """`code` is stable, for scripts; `files` are relative paths."""

    level: Level
    code: str
    message: str
    files: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {**asdict(self), "files": list(self.files)}

    def __str__(self) -> str:
        files = ", ".join(map(escape_for_terminal, self.files[:4]))
        more = f" and {len(self.files) - 4} more" if len(self.files) > 4 else ""
        return f"{self.level:7} {self.code}: {escape_for_terminal(self.message)}" + (
            f" [{files}{more}]" if files else ""
        )


def escape_for_terminal(name: str) -> str:
    """A file's name for a terminal: what would move the cursor or start a new line is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Worst first, then by code and files, so that equal data give equal reports."""
    return sorted(findings, key=lambda f: (LEVELS.index(f.level), f.code, f.message, f.files))


def count_by_level(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings there are of each level."""
    levels = [finding.level for finding in findings]
    return {level: levels.count(level) for level in LEVELS}


def pluralize(number: int, noun: str) -> str:
    """ "1 note", "2 notes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def any_at_level(findings: Iterable[Finding], level: str) -> bool:
    """Whether any finding is at least as bad as `level` ("never": none is)."""
    if level not in LEVELS:
        return False
    worst = LEVELS[: LEVELS.index(level) + 1]
    return any(finding.level in worst for finding in findings)
