"""The account of an import: columns by role, splits, and everything that was left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from data_tools.formats.column_roles import ColumnRoles
from data_tools.formats.left_out import LeftOut


@dataclass
class ImportLog:
    """Columns by role ("image", "captions", ...), splits, remarks with their number, what was left out."""

    left_out: LeftOut = field(default_factory=LeftOut)
    columns: dict[str, list[str]] = field(default_factory=dict)
    splits: list[str] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    def add_columns(self, roles: ColumnRoles) -> None:
        """Record the roles of the columns of a table."""
        for role, names in roles.used().items():
            known = self.columns.setdefault(role, [])
            known += [name for name in names if name not in known]
        self.left_out.extend("column", roles.unused.items())

    def add_splits(self, names: list[str]) -> None:
        """Record splits that are imported."""
        self.splits = sorted({*self.splits, *names})
