"""Text embeddings for pipelines whose call accepts only text: their `encode_prompt` is replaced meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.models.families.family import Conditioning

EncodePromptFn = Callable[[list["Conditioning"], "list[Conditioning] | None"], Any]
"""(rows of the prompts, rows of the negative prompts or None) -> the output of `encode_prompt`."""


@contextlib.contextmanager
def override_encode_prompt(pipe: Any, encode_prompt: Callable[..., Any]) -> Iterator[None]:
    """Replace the pipeline's `encode_prompt` within the context."""
    pipe.__dict__["encode_prompt"] = encode_prompt
    try:
        yield
    finally:
        del pipe.__dict__["encode_prompt"]


@contextlib.contextmanager
def lookup_encode_prompt(
    pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, encode_rows: EncodePromptFn
) -> Iterator[dict[str, list[str]]]:
    """Make `pipe.encode_prompt` look captions up within the context instead of encoding them.

    Yields the arguments `prompt` and, with a negative, `negative_prompt`: one made-up caption for each row.
    For some of these captions `encode_prompt` returns `encode_rows(rows, negative rows)`, whose rows have no
    batch dimension.
    """
    captions: dict[str, list[str]] = {}
    rows: dict[str, Conditioning] = {}
    for name, batch in {"prompt": cond, "negative_prompt": negative_cond or {}}.items():
        count = len(next(iter(batch.values()), []))
        texts = [f"{name} {i}" for i in range(count)]
        rows |= {text: {k: v[i] for k, v in batch.items()} for i, text in enumerate(texts)}
        if texts:
            captions[name] = texts

    def encode_prompt(prompt: Any, *_: Any, negative_prompt: Any = None, **__: Any) -> Any:
        positive = [rows[text] for text in prompt]
        return encode_rows(positive, [rows[text] for text in negative_prompt] if negative_prompt else None)

    with override_encode_prompt(pipe, encode_prompt):
        yield captions
