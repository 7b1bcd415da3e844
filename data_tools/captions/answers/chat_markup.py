"""Markup removed from an answer: turns and tokens of chat templates, tags of XML and"
" HTML, Markdown, escapes."""

from __future__ import annotations

import html
import re

_ASSISTANT = (
    r"<\|(?:im_start|start_header_id|start)\|>\s*(?:assistant"
    r"|model)\s*(?:<\|end_header_id\|>)?(?:<\|message\|>)?"
    r"|<start_of_turn>\s*model|<\|turn>\s*model|\[/INST\]|<\|(?:assistant|bot"
    r"|START_OF_TURN_TOKEN)\|>(?:<\|CHATBOT_TOKEN\|>)?"
    r"|<｜Assistant｜>|\bASSISTANT\s*:"
    r"|^[ \t]*(?:#{2,4}\s*)?(?:GPT\d*\s+(?:Correct\s+)?)?(?:Assistant|assistant|AI|Bot|Model|Response)[ \t]*:"
    r"|^[ \t]*#{2,4}[ \t]*(?:Response|Assistant|Answer|Output)\b[ \t]*:?|\A\s*(?:assistant|model)[ \t]*\n"
)
_USER = (
    r"<\|(?:im_start|start_header_id|start)\|>\s*(?:user|system|human|tool)\s*(?:<\|end_header_id\|>)?"
    r"|<start_of_turn>\s*user|<\|turn>\s*user|\[INST\]|<\|(?:user|system)\|>|<｜User｜>"
    r"|^[ \t]*(?:USER|User|HUMAN|Human)[ \t]*:|^[ \t]*#{2,4}[ \t]*(?:Instruction|Input|User|Human"
    r"|Question)\b[ \t]*:?"
)
_END = (
    r"<\|(?:im_end|eot_id|end|endoftext|end_of_text|eom_id|return|im_start|END_OF_TURN_TOKEN)\|>"
    r"|<end_of_turn>|<turn\|>"
    r"|<eos>|</s>|<｜end▁of▁sentence｜>"
)
_MARKS = re.compile(rf"(?P<assistant>{_ASSISTANT})|(?P<user>{_USER})|(?P<end>{_END})", re.MULTILINE)
_TOKEN = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|<｜[^<>\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk|mask|sep|cls)>"
    r"|<0x[0-9A-F]{2}>|<(?:unused|loc|seg|extra_id|patch_index|reserved_token|point|bin)_?\d+>|\[(?:PAD"
    r"|CLS|SEP|UNK)\]"
    r"|<(?:image|img|video|OD|CAPTION|[A-Z_]+_(?:CAPTION|CONTEXT|TOKEN|START|END|PAD)[A-Z_]*|image_\w+)>"
)
_SPACED_MARK = re.compile(r"(?<=\S) +(?=[.,;:!?](?:\s|$))")
_BOXES = re.compile(
    r"<\|(box|quad|point)_start\|>.*?<\|\1_end\|>|<(box|quad|object"
    r"|poly)>.*?</\2>|\[\[\d{1,4}(?:,\s*\d{1,4}){3}\]\]",
    re.DOTALL,
)
_PROLOGUE = re.compile(
    r"<\?xml[^<>]*\?>|<!doctype[^<>]*>|<!--.*?-->|<title>.*?</title>", re.DOTALL | re.IGNORECASE
)
_ANSWER_TAG = re.compile(
    r"<((?:final_|image_)?(?:caption|description|answer|final|output|response"
    r"|result))(?:\s[^<>]*)?>(.*?)(?:</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_PAIR = re.compile(r"<([A-Za-z][\w:.-]*)(?:\s[^<>]*)?>(.*?)</\1\s*>", re.DOTALL)
_TAG = re.compile(
    r"</?(?:p|br|hr|b|i|u|em|strong|span|div|ul|ol|li|h[1-6]|html|head|body|caption|description|answer"
    r"|final|output"
    r"|response|result)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-f]+);", re.IGNORECASE)
_LATEX = re.compile(r"\\(?:boxed|text|textbf|textit|mathrm)\{((?:[^{}]|\{[^{}]*\})*)\}")
_ESCAPED_LINE = re.compile(r"\\[rnt](?![a-z]*\{)")
_ESCAPED_LETTER = re.compile(r"\\u([0-9a-fA-F]{4})")
_MARKDOWN_IMAGE = re.compile(r"!\[[^\]\n]*\]\([^()\s]*\)")
_MARKDOWN_LINK = re.compile(r"\[([^\]\n]+)\]\((?:https?://|/|#|www\.)[^()\s]*\)")
_RULE = re.compile(r"^\s*(?:-{3,}|\*{3,}|_{3,}|={3,}|~{3,})\s*$", re.MULTILINE)
_LINE_MARK = re.compile(r"^\s*(?:#{1,6}\s+|[-*•]\s+|>\s+)", re.MULTILINE)
_EMPHASIS = re.compile(
    r"(\*\*)(?=\S)(.+?)(?<=\S)\1|(?<!\w)__(?=\S)([^_\n]*\s[^_\n]*)(?<=\S)__(?!\w)"
    r"|(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])"
    r"|(?<!\w)_(?=[\w\"“])([^_\n]+?)(?<=[\w.!?\"”])_(?!\w)|(?<!`)`([^`\n]+)`(?!`)",
    re.DOTALL,
)


def without_chat_markup(text: str, removed: list[str]) -> str:
    """Keep the assistant's turn, without the special tokens of chat templates, tags and entities."""
    plain = _assistant_turn(_without_raw_tokens(text))
    if (shorter := _TOKEN.sub(" ", _BOXES.sub(" ", plain))) != plain:
        plain = _SPACED_MARK.sub("", shorter)
    plain = _without_tags(_PROLOGUE.sub(" ", plain))
    if _ENTITY.search(plain):
        plain = html.unescape(plain)
    if plain != text:
        removed.append("chat markup")
    return plain


def without_escapes(text: str, removed: list[str]) -> str:
    r"""Replace `\boxed{...}`, `\n` and `\u0041` that were left as letters."""
    plain, before = text, ""
    while plain != before:
        before, plain = plain, _LATEX.sub(lambda match: match[1], plain)
    plain = _ESCAPED_LETTER.sub(lambda match: chr(int(match[1], 16)), _ESCAPED_LINE.sub("\n", plain))
    plain = plain.replace('\\"', '"')
    if plain != text:
        removed.append("escapes")
    return plain


def without_markdown(text: str, removed: list[str]) -> str:
    """Remove the marks of Markdown; the text of links and emphasis stays."""
    plain = _MARKDOWN_LINK.sub(lambda match: match[1], _MARKDOWN_IMAGE.sub("", text))
    plain = _LINE_MARK.sub("", _RULE.sub("", plain))
    plain = _EMPHASIS.sub(lambda match: next(group for group in match.groups()[1:] if group), plain)
    if plain.strip() != text.strip():
        removed.append("Markdown")
    return plain.strip()


def _without_raw_tokens(text: str) -> str:
    """Replace the blanks of tokenizers (SentencePiece, byte-level BPE) that were not decoded."""
    if text.count("▁") > 1:
        text = text.replace("▁", " ")
    return text.replace("Ġ", " ").replace("Ċ", "\n") if text.count("Ġ") > 1 else text


def _assistant_turn(text: str) -> str:
    """Return the first turn of the assistant; without marks, the whole text.

    What stands before a mark of the assistant is the prompt, what stands before another mark is the answer.
    """
    position, role = 0, ""
    for mark in _MARKS.finditer(text):
        part = text[position : mark.start()].strip()
        if part and (role == "assistant" or (not role and mark.lastgroup != "assistant")):
            return part
        position = mark.end()
        if mark.lastgroup != "end":
            role = str(mark.lastgroup)
    return text[position:].lstrip() if position and role != "user" else text[position:] if position else text


def _without_tags(text: str) -> str:
    if (answer := _ANSWER_TAG.search(text)) and answer[2].strip():
        text = answer[2]
    before = ""
    while text != before:
        before, text = text, _PAIR.sub(lambda match: match[2], text)
    return _TAG.sub(" ", text)
