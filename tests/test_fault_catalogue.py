"""The table in fault_catalogue.md is complete, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
CATALOGUE = TESTS / "fault_catalogue.md"
NUM_FAULTS = 96
UNTESTED = {87}  # cannot occur


def catalogue_rows() -> dict[int, list[tuple[str, str]]]:
    """Return (file, test) pairs by the number of the fault."""
    rows = {}
    for line in CATALOGUE.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (\d+) \|", line):
            assert int(match[1]) not in rows, line
            rows[int(match[1])] = re.findall(r"`([\w/]+\.py)::(\w+)`", line)
    return rows


def function_names(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_a_row_with_a_test():
    rows = catalogue_rows()
    assert sorted(rows) == list(range(1, NUM_FAULTS + 1))
    assert {number for number, tests in rows.items() if not tests} == UNTESTED


def test_every_test_in_the_catalogue_exists():
    named = {pair for pairs in catalogue_rows().values() for pair in pairs}
    functions = {file: function_names(TESTS / file) for file in {file for file, _ in named}}
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in functions[file]] == []
