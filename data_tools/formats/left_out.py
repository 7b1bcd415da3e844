"""Everything that an import or export leaves out, with the reason: files, columns, rows, keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from data_tools.findings import pluralize
from lorakit.core.visible_text import escape_name

_MAX_NAMES = 5  # printed for each reason; the JSON has all


class LeftOut:
    """Names by type ("file", "column", "row", ...) and reason, in the order in which they came."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], dict[str, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, noun: str, reason: str, *names: str) -> None:
        """Record what is left out for a reason; a name that is known for it is not added again."""
        self._names.setdefault((noun, reason), {}).update(dict.fromkeys(names))

    def extend(self, noun: str, names: Iterable[tuple[str, str]]) -> None:
        """Record pairs of name and reason."""
        for name, reason in names:
            self.add(noun, reason, name)

    def names(self, noun: str) -> list[str]:
        """Return the names of one type, sorted."""
        return sorted({name for (one, _), names in self._names.items() if one == noun for name in names})

    def to_json(self) -> list[dict[str, Any]]:
        """Return the names as JSON, for scripts."""
        return [
            {"type": noun, "reason": reason, "names": list(names)}
            for (noun, reason), names in self._names.items()
        ]

    def lines(self) -> list[str]:
        """Return a line of text for each type and reason."""
        lines = []
        for (noun, reason), names in self._names.items():
            first = ", ".join(map(escape_name, list(names)[:_MAX_NAMES]))
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            lines.append(f"  left out   {pluralize(len(names), noun)} ({first}{more}): {escape_name(reason)}")
        return lines
