"""The description within a model's answer: without reasoning, chat markup, JSON, Markdown and introductions.

An answer is read by its structure, never by its words alone; what was removed becomes a note. An answer that
holds no description raises `UnusableAnswer` with the reason.
"""

from __future__ import annotations

import re

from data_tools.captions.answers import unusable
from data_tools.captions.answers.chat_markup import without_chat_markup, without_escapes, without_markdown
from data_tools.captions.answers.json_answers import without_code_and_json
from data_tools.captions.answers.reasoning import without_reasoning, without_spoken_reasoning
from data_tools.captions.answers.wording import without_introduction, without_prompt

_LONGEST_RUN = 40  # of one sign or blank: more says nothing, and takes long to search
_LONG_RUN = re.compile(r"(\W)\1{40,}")


def extract_description(answer: str, prompt: str = "") -> tuple[str, list[str]]:
    """Return the description in an answer and the names of what was removed, such as `reasoning`.

    `prompt` is the request, which some servers repeat.
    """
    if not answer.strip():
        return "", []
    unusable.check_page(answer)
    removed: list[str] = []
    text = _LONG_RUN.sub(lambda match: match[0][:_LONGEST_RUN], answer)
    text = without_chat_markup(without_reasoning(text, removed), removed)
    text = without_prompt(text, prompt, removed)
    text = without_code_and_json(without_escapes(text, removed), removed)
    text = without_markdown(text, removed)
    text = without_introduction(text, removed)
    text = without_spoken_reasoning(text, removed).strip()
    shorter = unusable.without_repetition(text)
    if shorter != text:
        removed.append("repetition")
    unusable.check_description(shorter)
    return shorter, list(dict.fromkeys(removed))
