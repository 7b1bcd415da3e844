"""The errors a user is meant to read: what failed, where, and what to do about it.

Exit codes follow the command-line contract: 1 unexpected, 2 configuration or usage, 3 data, 4 out of memory,
5 disk, 6 numeric, 130/143 interrupted and resumable.
"""

from __future__ import annotations

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class LorakitError(Exception):
    """An expected failure. `where` names the file, sample or key; `remedy` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.remedy:
            parts.append(f"  remedy: {self.remedy}")
        return "\n".join(parts)


class ConfigError(LorakitError):
    """A recipe, option or combination that cannot work."""

    exit_code = 2


class DataError(LorakitError):
    """Images, captions or another input file that cannot be used."""

    exit_code = 3


class MemoryLimitError(LorakitError):
    """The device or the machine has too little memory."""

    exit_code = 4


class DiskError(LorakitError):
    """A write failed: full, read-only or broken storage."""

    exit_code = 5


class NumericError(LorakitError):
    """Non-finite or untrained numbers where finite, trained ones are needed."""

    exit_code = 6


class Interrupted(LorakitError):
    """The run was stopped by a signal after committing; the same command goes on."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message, remedy="give the same command again to go on")
        self.exit_code = 128 + signal_number


def first_line(error: BaseException) -> str:
    """What a library says went wrong, without the advice below it; its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
