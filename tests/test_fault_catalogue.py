"""The table in fault_catalogue.md is complete, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
CATALOGUE = TESTS / "fault_catalogue.md"
NUM_FAULTS = 96
UNTESTED = {87}  # cannot occur
FIELD_REPORTS = (
    *(f"A{number}" for number in range(1, 11)),
    *(f"B{number}" for number in range(11, 17)),
    *(f"C{number}" for number in range(17, 22)),
    *(f"D{number}" for number in range(22, 25)),
    *(f"R{number}" for number in range(1, 18)),
)


def catalogue_rows() -> dict[int, list[tuple[str, str]]]:
    """Return (file, test) pairs by the number of the fault."""
    rows = {}
    for line in CATALOGUE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (\d+) \|", line):
            assert int(match[1]) not in rows, line
            rows[int(match[1])] = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
    return rows


def field_rows() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (entry, (file, test) pairs) of each row of the field reports."""
    lines = CATALOGUE.read_text(encoding="utf-8").splitlines()
    matches = [(re.match(r"\| ([ABCDR]\d+) \|", line), line) for line in lines]
    return [(match[1], re.findall(r"`([\w/]+\.py)::(\w+)`", line)) for match, line in matches if match]


def function_names(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_row_with_a_test():
    rows = catalogue_rows()
    assert sorted(rows) == list(range(1, NUM_FAULTS + 1))
    assert {number for number, tests in rows.items() if not tests} == UNTESTED


def test_every_field_report_has_a_row_with_a_test():
    rows = field_rows()
    assert {entry for entry, tests in rows if tests} == set(FIELD_REPORTS)
    assert [entry for entry, tests in rows if not tests] == []


def test_every_test_in_the_catalogue_exists():
    named = {pair for pairs in catalogue_rows().values() for pair in pairs}
    named |= {pair for _, pairs in field_rows() for pair in pairs}
    functions = {file: function_names(TESTS / file) for file in {file for file, _ in named}}
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in functions[file]] == []
