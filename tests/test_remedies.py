"""Printed messages name only what exists: options, commands, recipe keys.

All strings of the code but docstrings are read, with `{}` for the values of f-strings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from lorakit.cli.main import lorakit
from lorakit.config.recipe import Recipe
from lorakit.config.validation_errors import known_keys

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("lorakit/**/*.py"), *ROOT.glob("data_tools/**/*.py")])
OPTION = re.compile(r"(?<![\w(-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
COMMAND = re.compile(r"`lorakit ([a-z][^`]*)`")
SECTIONS = "adapter|optimizer|train|objective|memory|samples|validate|textual_inversion|slider"
DOTTED_KEY = re.compile(rf"(?<![\w./-])(?:{SECTIONS})\.[a-z_0-9]+(?![\w(/-])")
SECTION_VALUE = re.compile(rf"\b({SECTIONS})=\{{([^}}]*)\}}")
ASSIGNMENT = re.compile(r"(?<![\w.-])([a-z_]+)=(?=\S)")
FILE_ENDINGS = ("safetensors", "csv", "py", "json", "jsonl", "yaml", "html", "png", "txt")
SCOPES = {
    "data_tools/": ("data",),
    "lorakit/adapters/publishing/": ("publish", "export"),
    "lorakit/adapters/": ("export", "inspect", "check", "convert", "combine", "resize", "extract", "merge"),
    "lorakit/sampling/": ("sample", "eval"),
    "lorakit/evaluation/": ("eval", "export", "sample", "train"),
}
"""The commands that print the messages of a package; those of the others may be of any command."""
OTHER_PROGRAMS = {
    "--num": "accelerate launch, in an expression that reads its command line",
    "--psm": "tesseract",
    "--version": "tesseract",
    "--list-langs": "tesseract",
    "--query-gpu": "nvidia-smi",
    "--format": "nvidia-smi",
    "--logdir": "tensorboard",
    "--project": "trackio",
    "--repo": "aim",
    "--w": "prompt files of kohya's sd-scripts",
    "--dataset": "sd-scripts: --dataset_config",
    "--masked": "sd-scripts: --masked_loss",
    "--torch-backend": "uv",
    "--reinstall-package": "uv",
    "--no-sync": "uv",
    "--index-url": "pip",
}
"""Options of other programs, reviewed by hand."""
OTHER_ASSIGNMENTS = {"alias": "an edit of captions", "replace": "an edit of captions"}
"""`name=` in remedies that is no recipe key, reviewed by hand."""


class Text(NamedTuple):
    """A string in the code, and whether it is the remedy of an error."""

    file: str
    line: int
    value: str
    is_remedy: bool

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}: {self.value[:160]}"


def strings_in(source: str, file: str) -> Iterator[Text]:
    """Yield the strings of a file that are no docstrings; an f-string is one text."""
    tree = ast.parse(source)
    docstrings, remedies, parts = set(), set(), set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for one in body if isinstance(body, list) else ():
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
                docstrings.add(id(one.value))  # also those below attributes
        if isinstance(node, ast.keyword) and node.arg == "remedy":
            remedies |= {id(inner) for inner in ast.walk(node.value)}
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "remedy" for target in node.targets
        ):
            remedies |= {id(inner) for inner in ast.walk(node.value)}
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            value = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            value = node.value
        else:
            continue
        if id(node) not in docstrings:
            yield Text(file, node.lineno, value, id(node) in remedies)


@cache
def texts() -> tuple[Text, ...]:
    return tuple(
        text for file in FILES for text in strings_in(file.read_text(), file.relative_to(ROOT).as_posix())
    )


@cache
def commands() -> dict[tuple[str, ...], set[str]]:
    """The options of every command, by its words."""
    found: dict[tuple[str, ...], set[str]] = {}

    def walk(command: click.Command, words: tuple[str, ...]) -> None:
        context = click.Context(command, info_name="lorakit")
        found[words] = {
            name
            for parameter in command.get_params(context)
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")
        }
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                walk(command.get_command(context, name), (*words, name))

    walk(lorakit, ())
    return found


@cache
def recipe_keys() -> set[str]:
    """All dotted keys of a recipe, with lists written without an index."""
    return {re.sub(r"\.0\b", "", key) for key in known_keys(Recipe)}


def unknown_options(text: Text) -> list[str]:
    """Options that the message names and that no command of its package has."""
    scope = next((words for prefix, words in SCOPES.items() if text.file.startswith(prefix)), None)
    options = set().union(
        *(names for words, names in commands().items() if scope is None or (words[:1] and words[0] in scope))
    )
    return [name for name in OPTION.findall(text.value) if name not in options and name not in OTHER_PROGRAMS]


def wrong_commands(text: Text) -> list[str]:
    """Commands in backticks that do not exist, or do not have an option that is written with them."""
    wrong = []
    for line in COMMAND.findall(text.value):
        words = line.split()
        path = tuple(words[:2]) if tuple(words[:2]) in commands() else tuple(words[:1])
        is_group = any(other[: len(path)] == path and len(other) > len(path) for other in commands())
        if path not in commands() or (is_group and len(words) > len(path) and words[1][0].isalpha()):
            wrong.append(line)
        else:
            wrong += [f"{line}: {name}" for name in OPTION.findall(line) if name not in commands()[path]]
    return wrong


def unknown_keys(text: Text) -> list[str]:
    """Recipe keys that the message names and that no recipe has."""
    if text.where.startswith("lorakit/config/recipe_import/") and " " not in text.value:
        return []  # the name of another trainer's setting
    keys = recipe_keys()
    unknown = [
        key
        for key in DOTTED_KEY.findall(text.value)
        if key not in keys and key.rpartition(".")[2] not in FILE_ENDINGS
    ]
    for section, values in SECTION_VALUE.findall(text.value):
        names = re.findall(r"([a-z_]+):", values)
        unknown += [f"{section}.{name}" for name in names if f"{section}.{name}" not in keys]
    if text.is_remedy:
        unknown += [
            key for key in ASSIGNMENT.findall(text.value) if key not in keys | OTHER_ASSIGNMENTS.keys()
        ]
    return unknown


def test_every_option_in_a_message_exists():
    assert [f"{name} in {text.where}" for text in texts() for name in unknown_options(text)] == []


def test_every_command_in_a_message_exists_with_its_options():
    assert [f"{line} in {text.where}" for text in texts() for line in wrong_commands(text)] == []


def test_every_recipe_key_in_a_message_exists():
    assert [f"{key} in {text.where}" for text in texts() for key in unknown_keys(text)] == []


@pytest.mark.parametrize(
    ("check", "file", "message"),
    [
        (unknown_options, "lorakit/adapters/x.py", "train it first, or export it with --force"),
        (unknown_options, "lorakit/adapters/x.py", "give --references DIR"),
        (unknown_options, "data_tools/x.py", "give --max-rank 3"),
        (wrong_commands, "lorakit/x.py", "run `lorakit exports FILE`"),
        (wrong_commands, "lorakit/x.py", "run `lorakit data prepares DIR`"),
        (wrong_commands, "lorakit/x.py", "run `lorakit resize FILE --rank 3`"),
        (unknown_keys, "lorakit/x.py", "set optimizer.clip=1"),
        (unknown_keys, "lorakit/x.py", "set memory={quantise: nf4}"),
        (unknown_keys, "lorakit/x.py", "set learning=1"),
    ],
)
def test_the_checks_find_names_that_do_not_exist(check, file, message):
    assert check(Text(file, 1, message, True))


@pytest.mark.parametrize(
    ("check", "file", "message"),
    [
        (unknown_options, "lorakit/adapters/x.py", "give --family NAME"),
        (unknown_options, "data_tools/x.py", "give --caption-encoding cp1252"),
        (wrong_commands, "lorakit/x.py", "run `lorakit resize FILE --max-rank 3`, or `lorakit eval run RUN`"),
        (
            unknown_keys,
            "lorakit/x.py",
            "set optimizer.lr=1 and memory={quantize: nf4}, see adapter.safetensors",
        ),
        (unknown_keys, "lorakit/x.py", "set trigger=sks"),
    ],
)
def test_the_checks_accept_names_that_exist(check, file, message):
    assert check(Text(file, 1, message, True)) == []


def test_strings_are_read_with_their_role():
    source = (
        '"""Doc --none."""\nX = 1\n"""Doc."""\nraise E(f"a {b} --c", remedy="set d" if e else f"{g} h")\n'
    )
    found = [(text.value, text.is_remedy) for text in strings_in(source, "x.py")]
    assert sorted(found) == [("a {} --c", False), ("set d", True), ("{} h", True)]
