"""Text and rows of a prompt file, as every form reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.data.subjects import Subjects

Values = dict[str, Any]


def is_comment(line: str) -> bool:
    """Return True for a line that is a comment: `# ...` or `// ...`."""
    return line.lstrip().startswith(("#", "// "))


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a file before its values are checked.

    `place` is its line or entry, `values` have the keys of lorakit, `unused` names what has no equal here,
    and `shared` are values of the file for prompts that have none of their own.
    """

    place: str
    values: Values
    unused: tuple[str, ...] = ()
    shared: Values = field(default_factory=dict)


@dataclass(frozen=True)
class PromptText:
    """The text of a prompt file, and what its forms need to read it. `log` receives what is not sampled."""

    text: str
    file: Path
    subjects: Subjects = ()
    log: Callable[[str], None] = field(default=lambda text: None)

    @property
    def where(self) -> str:
        """The file, for errors."""
        return str(self.file)

    @property
    def suffix(self) -> str:
        """The extension of the file's name in lower case."""
        return self.file.suffix.lower()

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield (number, line without spaces around it) of the lines with text, without comments."""
        for number, line in enumerate(self.text.split("\n"), 1):
            stripped = line.strip()
            if stripped and not is_comment(stripped):
                yield number, stripped

    def first_line(self) -> str:
        """Return the first line with text that is not a comment, or an empty string."""
        return next((line for _, line in self.lines()), "")


@dataclass(frozen=True)
class Form:
    """A form of prompt files: its title, the extensions it usually has, a test of the text, and a reader."""

    title: str
    suffixes: tuple[str, ...]
    matches: Callable[[PromptText], bool]
    read: Callable[[PromptText], Iterator[PromptRow]]
