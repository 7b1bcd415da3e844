"""How many tokens a caption has for each text encoder of a base, and exactly which words come too late.

Only tokenizers and JSON are read, no weights. A CLIP tokenizer states its own limit; where it does not, the
limit is the text length that the base's pipeline asks for (`max_sequence_length`, its default or that of the
base's lorakit.json).
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
from lorakit.core.errors import ConfigError
from lorakit.manifest import Record
from lorakit.models import base_model

SETTINGS_FILE = "lorakit.json"
CAPTION_CUT, CAPTION_CUT_PARTLY = "caption_cut", "caption_cut_partly"
NOTES = frozenset({CAPTION_CUT, CAPTION_CUT_PARTLY})
_NO_LIMIT = 1 << 20  # transformers' stand-in for "no limit" is far above
_LENGTH = "max_sequence_length"


@dataclass(frozen=True)
class TokenCount:
    """One caption for one tokenizer: tokens of the text itself, how many fit, and the words that do not."""

    tokenizer: str
    tokens: int
    limit: int
    lost: str


class CaptionTokenizer:
    """A tokenizer and the length at which its encoder stops reading."""

    def __init__(self, name: str, tokenizer: Any, length: int) -> None:
        self.name, self.tokenizer = name, tokenizer
        # The marks that begin and end every text take places too.
        self.limit = max(0, length - int(tokenizer.num_special_tokens_to_add()))

    def count(self, text: str) -> TokenCount:
        """Tokens of a caption, and the words of it that are cut off."""
        tokens = self._tokens(text)
        lost = "" if tokens <= self.limit else self._lost(text)
        return TokenCount(self.name, tokens, self.limit, lost)

    def _tokens(self, text: str) -> int:
        ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return len(ids)

    def _lost(self, text: str) -> str:
        """From the first word that does not fit whole; found by halving, which every tokenizer allows."""
        words = list(re.finditer(r"\S+", text))
        low, high = 0, len(words)  # the first `low` words fit
        while low < high:
            middle = (low + high + 1) // 2
            if self._tokens(text[: words[middle - 1].end()]) <= self.limit:
                low = middle
            else:
                high = middle - 1
        return text[words[low].start() :].strip() if low < len(words) else ""


def annotate_token_counts(records: Sequence[Record], base: str | None) -> list[Record]:
    """The records with a note for every caption whose end an encoder of the base does not read.

    `caption_cut` when none reads it, `caption_cut_partly` when another does; without a base, no such notes.
    """
    found = load_tokenizers(base) if base else ()
    return [replace_notes(record, NOTES, list(_truncation_notes(record, found))) for record in records]


def _truncation_notes(record: Record, found: Sequence[CaptionTokenizer]) -> Iterator[str]:
    if not (record.keep and found):
        return
    for number, caption in enumerate(record.captions, 1):
        counts = [reader.count(caption.text) for reader in found]
        cut = [count for count in counts if count.lost]
        code = CAPTION_CUT if len(cut) == len(counts) else CAPTION_CUT_PARTLY
        which = f"caption {number}: " if len(record.captions) > 1 else ""
        for count in {(c.limit, c.lost): c for c in reversed(cut)}.values():
            reads = f"{count.tokenizer} reads {count.limit} of {count.tokens} tokens, not: {count.lost}"
            yield f"{code}: {which}{reads}"


@functools.lru_cache(maxsize=4)
def load_tokenizers(base: str) -> tuple[CaptionTokenizer, ...]:
    """The tokenizers of a base: embedded name, diffusers folder or hub id."""
    from transformers import AutoTokenizer

    folder = base_model.resolve_base(base)
    index = storage.read_json(folder / base_model.MODEL_INDEX)
    found: list[CaptionTokenizer] = []
    for name, part in sorted(index.items()):
        present = isinstance(part, list) and part[0] is not None
        if not (present and name.startswith(("tokenizer", "processor"))):
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder / name, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            where = str(folder / name)
            raise ConfigError(
                f"the tokenizer cannot be read: {reason}", where=where, remedy="fetch it again"
            ) from error
        found.append(
            CaptionTokenizer(
                name, tokenizer, _encoder_length(folder, str(index.get("_class_name")), tokenizer)
            )
        )
    return tuple(found)


def _encoder_length(folder: Path, pipeline: str, tokenizer: Any) -> int:
    """Tokens, marks included, that the encoder behind a tokenizer gets to read."""
    own = int(tokenizer.model_max_length)
    if type(tokenizer).__name__.startswith("CLIP"):
        return own if own < _NO_LIMIT else 77
    asked = _pipeline_length(pipeline)
    if (folder / SETTINGS_FILE).is_file():
        asked = int(storage.read_json(folder / SETTINGS_FILE).get(_LENGTH, asked or 0)) or asked
    known = [length for length in (own, asked) if length is not None and 0 < length < _NO_LIMIT]
    return min(known) if known else _NO_LIMIT


def _pipeline_length(pipeline: str) -> int | None:
    """The default text length of a diffusers pipeline; None when it has none."""
    import diffusers

    kind = getattr(diffusers, pipeline, None)
    for method in ("__call__", "encode_prompt"):
        parameters = inspect.signature(getattr(kind, method)).parameters if hasattr(kind, method) else {}
        if _LENGTH in parameters and isinstance(parameters[_LENGTH].default, int):
            return int(parameters[_LENGTH].default)
    return None
