"""Texts that image generators write beside their images: prompt, negative prompt and a line of settings.

a dog on grass
Negative prompt: blurry
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512
"""

from __future__ import annotations

import re

_SETTINGS = re.compile(r"^Steps: \d+, .*(?:Sampler|Seed|CFG scale|Size|Model)\b.*", re.MULTILINE | re.DOTALL)
_NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)


def split_settings(text: str) -> tuple[str, str]:
    """Return the prompt, and the negative prompt and settings after it; "" if the text has no settings."""
    settings = _SETTINGS.search(text)
    if settings is None:
        return text, ""
    negative = _NEGATIVE.search(text, 0, settings.start())
    end = negative.start() if negative else settings.start()
    return text[:end].strip(), text[end:].strip()
