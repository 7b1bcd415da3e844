"""Captions and files by image from the tables of a folder, and the rows that are not used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath


@dataclass(frozen=True)
class RowProblem:
    """A row of a table, or a whole one, that is not used; `code` is short, `message` says what is wrong."""

    table: str
    place: str  # "line 3"; "" for the whole table
    code: str  # unreadable, no_image, no_text or no_file
    message: str
    remedy: str | None = None


@dataclass
class TableCaption:
    """The captions of an image in one table."""

    table: str
    texts: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


@dataclass
class Tables:
    """Captions and files by image from all tables of a folder, and the rows that are not used."""

    captions: dict[str, list[TableCaption]] = field(default_factory=dict)
    files: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # by column and image
    problems: list[RowProblem] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the tables with captions
    other_names: list[str] = field(default_factory=list)  # of those that are not metadata files or kohya's


def missing_rows(tables: Tables, files: Iterable[str]) -> dict[str, list[str]]:
    """Return the images that a table with captions in their folder, or one around it, leaves out."""
    missing: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if tables.captions.get(file):
            continue
        for table in tables.names:
            if PurePosixPath(table).parent in PurePosixPath(file).parents:
                missing[table].append(file)
                break
    return missing


def group_problems(problems: Sequence[RowProblem]) -> Mapping[tuple[str, str], list[RowProblem]]:
    """Return the problems by table and code."""
    groups: dict[tuple[str, str], list[RowProblem]] = defaultdict(list)
    for problem in problems:
        groups[problem.table, problem.code].append(problem)
    return groups
