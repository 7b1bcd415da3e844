"""The language of the project: docstrings, messages, help texts, names and public keys use the field's words.

The list follows the glossary: one word for one thing. A word is added here when it is replaced.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lorakit.cli import main
from lorakit.cli.reference import reference_page

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("lorakit/**/*.py"), *ROOT.glob("data_tools/**/*.py")])
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("examples/*.md"),
        *ROOT.glob("recipes/*.yaml"),
        *ROOT.glob("examples/*.yaml"),
        *ROOT.glob("lorakit/**/*.md"),
        *ROOT.glob("data_tools/**/*.md"),
        *(f for f in ROOT.glob(".github/*.md") if f.name != "CHANGELOG.md"),
    ]
)
OPENER = re.compile(r"(What|How|Whether|Where|Which|Who|Why)\b")
WORDS = {
    r"pictures?": "image",
    r"films?": "video",
    r"clips(?<!CLIPs)": "videos",
    r"stills": "still images",
    r"trained numbers": "trainable parameters",
    r"in few bits": "quantized",
    r"(it|he|they|is|are|was|were|be) told": "print, report, state",
    r"for a while": "name the duration or the condition",
    r"stands? in for": "replaces",
    r"(?<!there )(is|are) no (?!such|longer)[a-z]+": "is not a ...",
    r"(go|goes|going|gone|went) on with": "resume, continue",
    r"as (it|they) (is|are|was|were)(?=[.,;)]|$)": "unchanged",
    r"of the way": "fidelity in %",
    r"(to|is|are|be) drawn|draws? (a|an|the|one|each) (sample|image|prompt)": "sample, generate",
    r"learn(t|ed|s|ing)? by heart": "memorization",
    r"set aside|quarantined?": "excluded",
    r"lookalikes?": "nearest training image",
    r"standings?": "quality",
    r"(gradient|activation)s? (are )?recomput\w+": "gradient checkpointing",
}
OWN_TEXT = {
    "data_tools/captions/edits.py": "photo|photograph",
    "data_tools/captions/lint.py": "photo photograph",
    "data_tools/formats/column_names.py": "img imgs",
}
"""Words of captions and columns that these modules look for."""
WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
NAMES = {"made", "told", "given", "taken", "wanted", "asked", "found", "drawn", "shown"}
"""Variables are named for what they hold."""
REPLACED_KEYS = {
    "optimizer.clip", "optimizer.lora_plus_ratio", "train.keep", "memory.checkpoint", "samples.steps",
    "samples.guidance", "samples.clip", "embedding", "slider.target", "slider.positive",
    "slider.negative", "slider.guidance", "slider.pictures", "objective.mask", "objective.preserve",
    "objective.class_weight", "objective.gamma", "objective.stratified", "given", "clip", "pixels",
    "mask_pixels", "crop_by", "focus", "mask_turn", "seen", "raw", "by", "kind", "identity", "facts",
    "skipped", "seconds", "steps", "arms", "standing", "pick", "ceiling", "right", "lookalike",
    "runners_up", "drift_budget", "indicative", "low", "high", "totals", "pictures", "for", "keys",
    "approximated", "unsound", "loads_in", "numbers", "kinds", "licence", "rank16", "quarantined",
    "prices", "tiers", "shapes",
}  # fmt: skip
"""Public keys that version 0.2 replaced; .github/CHANGELOG.md has the new ones."""


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def docstrings(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the docstrings of a module, its classes and functions, and of attributes."""
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for child in node.body:
                value = child.value if isinstance(child, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield child.lineno, value.value


def texts(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string of two or more words: docstrings, messages and help texts."""
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def module_id(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=module_id)
def test_docstrings_start_with_a_verb_or_a_noun(file):
    openers = [f"{line}: {text[:60]}" for line, text in docstrings(tree(file)) if OPENER.match(text)]
    assert not openers


@pytest.mark.parametrize("file", FILES, ids=module_id)
def test_texts_use_the_words_of_the_glossary(file):
    own = OWN_TEXT.get(module_id(file).replace("\\", "/"))
    shown = [(line, text) for line, text in texts(tree(file)) if not own or own not in text]
    replaced = [f"{line}: {match[0]!r}" for line, text in shown for match in WORD.finditer(text)]
    comments = re.findall(r"#.*$", file.read_text(encoding="utf-8"), re.M)
    replaced += [f"{match[0]!r} in {text!r}" for text in comments for match in WORD.finditer(text)]
    assert not replaced


@pytest.mark.parametrize("file", DOCUMENTS, ids=module_id)
def test_documents_use_the_words_of_the_glossary(file):
    text = file.read_text(encoding="utf-8")
    assert not [match[0] for match in WORD.finditer(text)]


@pytest.mark.parametrize("file", FILES, ids=module_id)
def test_variables_are_named_for_what_they_hold(file):
    names = {
        f"{node.lineno}: {name}"
        for node in ast.walk(tree(file))
        for name in [node.arg if isinstance(node, ast.arg) else getattr(node, "id", "")]
        if isinstance(node, ast.arg | ast.Name) and name in NAMES
    }
    assert not names


def public_keys() -> dict[str, set[str]]:
    """Return the keys of the recipe, of the files and of the JSON answers."""
    table = re.compile(r"^\| `([^`]+)` \|", re.M)
    sections = reference_page().split("\n## ")
    return {
        section.split("\n")[0]: {key for names in table.findall(section) for key in names.split(", ")}
        for section in sections[1:]
        if not section.startswith("Environment")
    }


@pytest.mark.parametrize("section", public_keys())
def test_public_keys_are_not_the_replaced_ones(section):
    kept = {"Prompt files": {"kind"}, "Files of a run": {"steps"}, "JSON answers": {"steps"}}
    assert not public_keys()[section] & REPLACED_KEYS - kept.get(section, set())


def test_command_line_help_uses_the_words_of_the_glossary():
    def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, str]]:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            inner = click.Context(command, info_name=name, parent=context)
            yield name, command.get_help(inner)
            if isinstance(command, click.Group):
                yield from commands(command, inner)

    for name, text in commands(main.lorakit, click.Context(main.lorakit, info_name="lorakit")):
        assert not [match[0] for match in WORD.finditer(text)], name
        assert not [line for line in text.splitlines() if OPENER.match(line.strip())], name
