"""Errors that users read: what is wrong, where, and what to do.

Exit codes of the command line: 1 unexpected, 2 configuration or usage, 3 data, 4 out of memory,
5 disk, 6 numeric, 130/143 interrupted and resumable.
"""

from __future__ import annotations

from lorakit.core.secret_text import mask_secrets
from lorakit.core.visible_text import escape_name

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
OTHER_PROCESS_ENDED = "another process of this run has ended, so this one stops too"


class LorakitError(Exception):
    """An expected failure. `where` names the file, image or recipe key; `remedy` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        message = mask_secrets(message)  # of a server or library, which may repeat a key
        super().__init__(message)
        self.message = message
        self.where = mask_secrets(where) if where else where
        self.remedy = mask_secrets(remedy) if remedy else remedy

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"  where: {escape_name(self.where)}")
        if self.remedy:
            parts.append(f"  remedy: {self.remedy}")
        return "\n".join(parts)


class ConfigError(LorakitError):
    """Invalid recipe, option or combination of settings."""

    exit_code = 2


class DataError(LorakitError):
    """Image, caption or other input file that cannot be used."""

    exit_code = 3


class MemoryLimitError(LorakitError):
    """Out of memory on the device or the machine."""

    exit_code = 4


class DiskError(LorakitError):
    """Failed write: full, read-only or broken disk."""

    exit_code = 5


class NumericError(LorakitError):
    """Non-finite numbers, or weights that were never trained."""

    exit_code = 6


class ProcessEndedError(LorakitError):
    """Another process of the same run has ended; its own error is the cause."""

    def __init__(self, *, where: str) -> None:
        super().__init__(
            OTHER_PROCESS_ENDED,
            where=where,
            remedy="read the other process's error; the same command resumes from the last checkpoint",
        )


class Interrupted(BaseException):
    """Run stopped by a signal; what is saved stays, and the same command resumes it.

    Not an `Exception`: signal handlers raise it in the middle of any code, and libraries catch exceptions.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"{self.message}; run the same command again to go on"


def first_line(error: BaseException) -> str:
    """Return the first line of an error message without secrets; its class if the message is empty."""
    return mask_secrets(str(error).splitlines()[0]) if str(error) else type(error).__name__
