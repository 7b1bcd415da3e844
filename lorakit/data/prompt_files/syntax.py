"""Syntax of other tools in the texts of a prompt: read where it has an equal, otherwise refused."""

from __future__ import annotations

from collections.abc import Sequence

from lorakit.core import prompt_syntax
from lorakit.core.errors import DataError
from lorakit.data.prompt_files.row import Values

TEXT_KEYS = ("prompt", "score_text", "negative")


def read_syntax(row: Values, where: str, triggers: Sequence[str]) -> tuple[Values, list[str]]:
    """Return a row with the syntax of other tools read, and the uses that may be meant literally.

    Raises DataError for syntax that has no meaning here, with the remedy.
    """
    doubtful = []
    for key in TEXT_KEYS:
        text = row.get(key)
        if not isinstance(text, str):
            continue  # checked later
        text = _with_trigger(prompt_syntax.unescape_parentheses(text), triggers, where)
        for use in prompt_syntax.find_syntax(text):
            if use.certain:
                raise DataError(
                    f"{use.text!r} is {use.kind.title}: lorakit would read it as plain words",
                    where=where,
                    remedy=use.kind.remedy,
                )
            doubtful.append(f"{use.text!r} looks like {use.kind.title}, and is read as plain words")
        row = row | {key: text}
    return row, doubtful


def _with_trigger(text: str, triggers: Sequence[str], where: str) -> str:
    """Return the text with the trigger word in place of `[trigger]`; without exactly one, a DataError."""
    if not prompt_syntax.has_trigger_placeholder(text):
        return text
    if len(triggers) != 1:
        problem = f"several are known: {', '.join(triggers)}" if triggers else "none is known here"
        remedy = "write the trigger word itself in the prompt"
        raise DataError(f"[trigger] stands for the trigger word, and {problem}", where=where, remedy=remedy)
    return prompt_syntax.fill_trigger(text, triggers[0])
