"""Each package has a README that names all of its files and sub-packages, and nothing that does not exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(
    file.parent.relative_to(ROOT).as_posix()
    for name in ("lorakit", "data_tools")
    for file in (ROOT / name).rglob("__init__.py")
)
FAMILIES = "lorakit/models/families"
ELSEWHERE = {
    "lorakit": ".github/CONTRIBUTING.md",
    f"{FAMILIES}/derived": f"{FAMILIES}/README.md",
    f"{FAMILIES}/networks": f"{FAMILIES}/README.md",
}
"""Packages without a README of their own, and the document that describes them."""
DOCUMENTS = [
    *(f"{package}/README.md" for package in PACKAGES if package not in ELSEWHERE),
    "tests/README.md",
    ".github/CONTRIBUTING.md",
]
GUIDES = (f"{FAMILIES}/README.md", ".github/CONTRIBUTING.md")
"""Documents of another form: they explain how to add something."""
TOP = ("lorakit", "data_tools", "tests", "recipes", "examples", ".github")
SOURCE = {".py", ".css"}
"""Files that a README names; weights, licenses and markers are described in words."""


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def quoted(document: str) -> set[str]:
    """Return the words in backticks outside of code blocks."""
    prose = re.sub(r"```.*?```", "", text_of(document), flags=re.S)
    return set(re.findall(r"`([^`\s]+)`", prose))


def is_family(file: Path) -> bool:
    """Return True for a module that defines a model family: the README of the families lists none of them."""
    return bool(re.search(r"^    title = ", file.read_text(encoding="utf-8"), re.M))


def entries(package: str) -> set[str]:
    """Return the files and sub-packages that a README has to name; sub-packages end in a slash."""
    folder, names = ROOT / package, set()
    for path in folder.iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            names.add(f"{path.name}/")
        elif path.suffix in SOURCE and not path.name.startswith("__"):
            names.add(path.name)
    if package == FAMILIES:
        names -= {name for name in names if name.endswith(".py") and is_family(folder / name)}
    return names


@cache
def words_of_the_source() -> frozenset[str]:
    files = [file for name in ("lorakit", "data_tools", "tests") for file in (ROOT / name).rglob("*.py")]
    return frozenset(word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in ELSEWHERE])
def test_a_readme_names_every_module_and_every_sub_package(package):
    assert entries(package) - quoted(f"{package}/README.md") == set()


def test_a_package_without_a_readme_is_described_elsewhere():
    for package, document in ELSEWHERE.items():
        assert package in PACKAGES
        if package != "lorakit":
            assert f"{Path(package).name}/" in quoted(document)
    packages = {f"lorakit/{name.removesuffix('/')}" for name in entries("lorakit")}
    assert packages | {"data_tools"} <= quoted(ELSEWHERE["lorakit"])


def test_the_readme_of_the_tests_names_every_folder_and_every_module():
    folders = {f"{file.parent.name}/" for file in (ROOT / "tests").glob("*/__init__.py")}
    modules = {file.name for file in (ROOT / "tests").glob("*.py") if file.name != "__init__.py"}
    assert folders | modules <= quoted("tests/README.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_readme_names_only_files_that_exist(document):
    folder = (ROOT / document).parent
    paths = {ROOT / name for name in quoted(document) if name.startswith(tuple(f"{top}/" for top in TOP))}
    paths |= {
        folder / name
        for name in quoted(document)
        if re.fullmatch(r"[\w./-]+(\.py|\.css|/)", name) and ROOT / name not in paths
    }
    blocks = "".join(re.findall(r"```.*?```", text_of(document), re.S))
    commands = re.findall(r"(?<![\w/])(?:lorakit|data_tools|tests|recipes|examples)/[\w./-]+", blocks)
    paths |= {ROOT / name for name in commands}
    assert [path for path in paths if not path.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_of_code_in_a_readme_occur_in_the_source(document):
    names = {name for name in quoted(document) if re.fullmatch(r"[A-Za-z_]\w*", name)}
    assert names - words_of_the_source() == set()


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d not in GUIDES])
def test_a_readme_states_what_to_change_and_its_rule(document):
    headings = re.findall(r"^## (.*)$", text_of(document), re.M)
    assert {"To change", "Rule"} <= set(headings)
