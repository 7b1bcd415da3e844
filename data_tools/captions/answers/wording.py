"""Words around a description: introductions, labels, quotes, further options, closing offers and notes."""

from __future__ import annotations

import re

_LABEL_WORDS = (
    r"(?:(?:final|image|training|detailed|short|long|brief|medium|suggested|best|alternative|the|your"
    r"|possible)[\s_]+)*"
    r"(?:caption|description|answer|prompt|output|response|alt[ -]text|option|version)"
)
_LABEL = re.compile(
    rf"^\W*(?:{_LABEL_WORDS}|image|photo)\s*(?:#?\d+|[a-e])?\s*(?:\([^()\n]*\))?\s*[*_`\"]*\s*[:：=]\s*[*_`]*\s*",
    re.IGNORECASE,
)
_HEADING = re.compile(rf"^\W*{_LABEL_WORDS}\s*\n+", re.IGNORECASE)
_BLOCK_MARK = re.compile(r"^[|>][-+]?\s*\n\s*")
_INTRODUCTION = re.compile(
    r"^(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|yes|got it)[,.!]*\s*)?"
    r"(?:here(?:'s|’s| is| are)|this is|below is|the following is|(?:based on"
    r"|from) the image[^.:：\n]{0,40}here is)\b"
    r"[^.:：\n]{0,100}"
    r"\b(?:captions?|descriptions?|prompts?|text|options?|versions?|json|response"
    r"|answer)\b[^.:：\n]{0,80}[:：]\s*",
    re.IGNORECASE,
)
_FOREIGN_INTRODUCTION = re.compile(
    r"^[^\n.。]{0,60}(?:描述|图片|图像|圖片|標題|标题|画像|説明|キャプション|설명|캡션|descripci|descriç|beschreibung|bildunterschrift"
    r"|légende|descrizione|didascalia|описание|подпись|opis|beschrijving|beskrivning"
    r"|açıklama)[^\n.。]{0,30}[:：]\s*(?=\S)",
    re.IGNORECASE,
)
_AFFIRMATION = re.compile(
    r"^(?:(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|no problem|great|got it)[,.!]+\s+(?=\S)"
    r"|(?:i(?:['’]ll| will| can| would be happy to)|let me) (?:describe|caption|provide|write|give|help"
    r"|generate|create)"
    r"\b[^.:!\n]{0,100}[.:!]\s+(?=\S))",
    re.IGNORECASE,
)
_FIRST_OPTION = re.compile(
    r"^(?:option\s*)?(?:1|one)\s*[.):]\s+(.+?)(?=\n\s*(?:option\s*)?(?:2|two)\s*[.):]\s)",
    re.DOTALL | re.IGNORECASE,
)
_ONLY_OPTION = re.compile(r"^1[.)]\s+(?=\S)")
_FURTHER = re.compile(
    rf"\n\s*\W*(?:{_LABEL_WORDS})\s*(?:#?\d+|[a-e])?\s*(?:\([^()\n]*\))?\s*[*_`\"]*\s*[:：].*\Z",
    re.DOTALL | re.IGNORECASE,
)
_CLOSING = re.compile(
    r"(?:\s*(?:let me know (?:if|should)|would you like|feel free to|(?:i )?hope (?:this|that|it) helps"
    r"|is there anything else|if you(?:'d| would)? (?:like|need|want)|do you want me)[^\n]*"
    r"|(?:(?<=[.!?\"”])\s+|\n)\W*(?:note|disclaimer|word count|tokens?|tip|explanation|confidence)\W*[:：].*"
    r"|\s*[(\[]\d+ (?:words|tokens|characters)[)\]]|(?:\s+#\w+){2,40})\s*$",
    re.IGNORECASE | re.DOTALL,
)
_MAX_LAYERS = 8  # introductions, labels and quotes around each other
_QUOTES = {
    '"': '"',
    "“": "”",
    "'": "'",
    "‘": "’",
    "«": "»",
    "「": "」",
    "『": "』",
    "`": "`",
    "„": "“",
    "*": "*",
}


def without_introduction(text: str, removed: list[str]) -> str:
    """Remove `Here is a caption:`, `Caption:`, quotes around the whole, closing offers, further options."""
    plain = text.strip()
    for _ in range(_MAX_LAYERS):
        before = plain
        for pattern in (_INTRODUCTION, _FOREIGN_INTRODUCTION, _AFFIRMATION, _HEADING, _LABEL, _BLOCK_MARK):
            shorter = pattern.sub("", plain, count=1).strip()
            plain = shorter or plain
        if match := _FIRST_OPTION.match(plain):
            plain = match[1].strip()
        for pattern in (_ONLY_OPTION, _FURTHER, _CLOSING):
            plain = pattern.sub("", plain).strip() or plain
        plain = _unquoted(plain)
        if plain == before:
            break
    if plain != text.strip():
        removed.append("introduction")
    return plain


def without_prompt(text: str, prompt: str, removed: list[str]) -> str:
    """Remove the prompt that a server repeats in front of its answer."""
    words = prompt.split()
    if len(words) < 2:
        return text
    repeated = re.match(r"\W*" + r"\s+".join(map(re.escape, words)) + r"\s*", text, re.IGNORECASE)
    if not repeated or not text[repeated.end() :].strip():
        return text
    removed.append("prompt")
    return text[repeated.end() :]


def _unquoted(text: str) -> str:
    """Return the text without quotes around the whole of it."""
    for triple in ('"""', "'''"):
        if text.startswith(triple) and text.endswith(triple) and len(text) > 6:
            return text[3:-3].strip()
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 2 and text.endswith(closing) and closing not in text[1:-1]:
        return text[1:-1].strip()
    return text
