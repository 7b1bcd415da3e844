"""Count the tokens of a caption for each text encoder of a base, and find the words that do not fit.

Only tokenizers and JSON are read, no weights. A CLIP tokenizer has its own limit; otherwise the limit is
`max_sequence_length` of the base's pipeline: its default, or the value in the base's lorakit.json.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.scan import replace_notes
from lorakit.core import storage
from lorakit.core.errors import ConfigError, first_line
from lorakit.manifest import Record
from lorakit.models import base_model

SETTINGS_FILE = "lorakit.json"
CAPTION_CUT, CAPTION_CUT_PARTLY = "caption_truncated", "caption_truncated_partly"
NOTES = frozenset({CAPTION_CUT, CAPTION_CUT_PARTLY})
_NO_LIMIT = 1 << 20  # transformers uses a far larger number for "no limit"
_LENGTH = "max_sequence_length"


@dataclass(frozen=True)
class TokenCount:
    """Tokens of one caption for one tokenizer, the number that fits, and the text that does not fit."""

    tokenizer: str
    num_tokens: int
    max_tokens: int
    truncated_text: str


class CaptionTokenizer:
    """A tokenizer, and the number of tokens that its text encoder reads."""

    def __init__(self, name: str, tokenizer: Any, length: int) -> None:
        self.name, self.tokenizer = name, tokenizer
        # Start and end tokens count, too.
        self.max_tokens = max(0, length - int(tokenizer.num_special_tokens_to_add()))

    def count(self, text: str) -> TokenCount:
        """Count the tokens of a caption, and find the words that are truncated."""
        num_tokens = self._num_tokens(text)
        truncated_text = "" if num_tokens <= self.max_tokens else self._truncated_text(text)
        return TokenCount(self.name, num_tokens, self.max_tokens, truncated_text)

    def _num_tokens(self, text: str) -> int:
        ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return len(ids)

    def _truncated_text(self, text: str) -> str:
        """Return the text from the first word that does not fit, found by bisection."""
        words = list(re.finditer(r"\S+", text))
        low, high = 0, len(words)  # the first `low` words fit
        while low < high:
            middle = (low + high + 1) // 2
            if self._num_tokens(text[: words[middle - 1].end()]) <= self.max_tokens:
                low = middle
            else:
                high = middle - 1
        return text[words[low].start() :].strip() if low < len(words) else ""


def annotate_token_counts(records: Sequence[Record], base: str | None) -> list[Record]:
    """Return the records with a note for each caption that an encoder of the base does not read to its end.

    The note is `caption_truncated` if none reads it to its end, `caption_truncated_partly` if another does.
    """
    tokenizers = load_tokenizers(base) if base else ()
    return [replace_notes(record, NOTES, list(_truncation_notes(record, tokenizers))) for record in records]


def _truncation_notes(record: Record, tokenizers: Sequence[CaptionTokenizer]) -> Iterator[str]:
    if not (record.keep and tokenizers):
        return
    for number, caption in enumerate(record.captions, 1):
        counts = [tokenizer.count(caption.text) for tokenizer in tokenizers]
        truncated = [count for count in counts if count.truncated_text]
        code = CAPTION_CUT if len(truncated) == len(counts) else CAPTION_CUT_PARTLY
        which = f"caption {number}: " if len(record.captions) > 1 else ""
        for count in {(c.max_tokens, c.truncated_text): c for c in reversed(truncated)}.values():
            limit = f"{count.tokenizer} reads {count.max_tokens} of {count.num_tokens} tokens"
            yield f"{code}: {which}{limit}, not: {count.truncated_text}"


@functools.lru_cache(maxsize=4)
def load_tokenizers(base: str) -> tuple[CaptionTokenizer, ...]:
    """Load the tokenizers of a base: embedded name, diffusers folder or hub id."""
    from transformers import AutoTokenizer

    folder = base_model.resolve_base(base)
    index = storage.read_json(folder / base_model.MODEL_INDEX)
    tokenizers: list[CaptionTokenizer] = []
    for name, part in sorted(index.items()):
        present = isinstance(part, list) and part[0] is not None
        if not (present and name.startswith(("tokenizer", "processor"))):
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder / name, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            where, reason = str(folder / name), first_line(error)
            raise ConfigError(
                f"the tokenizer cannot be read: {reason}", where=where, remedy="download it again"
            ) from error
        tokenizers.append(
            CaptionTokenizer(
                name, tokenizer, _encoder_length(folder, str(index.get("_class_name")), tokenizer)
            )
        )
    return tuple(tokenizers)


def _encoder_length(folder: Path, pipeline: str, tokenizer: Any) -> int:
    """Return the number of tokens that a tokenizer's encoder reads, start and end tokens included."""
    tokenizer_length = int(tokenizer.model_max_length)
    if type(tokenizer).__name__.startswith("CLIP"):
        return tokenizer_length if tokenizer_length < _NO_LIMIT else 77
    pipeline_length = _pipeline_length(pipeline)
    if (folder / SETTINGS_FILE).is_file():
        settings = storage.read_json(folder / SETTINGS_FILE)
        pipeline_length = int(settings.get(_LENGTH, pipeline_length or 0)) or pipeline_length
    known = [
        length
        for length in (tokenizer_length, pipeline_length)
        if length is not None and 0 < length < _NO_LIMIT
    ]
    return min(known) if known else _NO_LIMIT


def _pipeline_length(pipeline: str) -> int | None:
    """Return the default text length of a diffusers pipeline; None if it has none."""
    import diffusers

    pipeline_class = getattr(diffusers, pipeline, None)
    for method in ("__call__", "encode_prompt"):
        parameters = (
            inspect.signature(getattr(pipeline_class, method)).parameters
            if hasattr(pipeline_class, method)
            else {}
        )
        if _LENGTH in parameters and isinstance(parameters[_LENGTH].default, int):
            return int(parameters[_LENGTH].default)
    return None
