"""For pipelines that take nothing but text: answer for their text encoder while they draw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.models.families.family import Conditioning

EncodePromptFn = Callable[[list["Conditioning"], "list[Conditioning] | None"], Any]


@contextlib.contextmanager
def override_encode_prompt(pipe: Any, encode_prompt: Callable[..., Any]) -> Iterator[None]:
    """While inside, the pipeline calls this instead of its own `encode_prompt`."""
    pipe.__dict__["encode_prompt"] = encode_prompt
    try:
        yield
    finally:
        del pipe.__dict__["encode_prompt"]


@contextlib.contextmanager
def lookup_encode_prompt(
    pipe: Any, cond: Conditioning, negative: Conditioning | None, answer: EncodePromptFn
) -> Iterator[dict[str, list[str]]]:
    """While inside, `pipe.encode_prompt` looks captions up instead of encoding them.

    Yields the arguments `prompt` and, with a negative, `negative_prompt`: one caption for each row. Asked
    for some of them, `encode_prompt` returns `answer(rows, rows of its negative_prompt)`; a row has no batch
    dimension.
    """
    captions: dict[str, list[str]] = {}
    rows: dict[str, Conditioning] = {}
    for name, batch in {"prompt": cond, "negative_prompt": negative or {}}.items():
        count = len(next(iter(batch.values()), []))
        texts = [f"{name} {i}" for i in range(count)]
        rows |= {text: {k: v[i] for k, v in batch.items()} for i, text in enumerate(texts)}
        if texts:
            captions[name] = texts

    def encode_prompt(prompt: Any, *_: Any, negative_prompt: Any = None, **__: Any) -> Any:
        look = [rows[text] for text in prompt]
        return answer(look, [rows[text] for text in negative_prompt] if negative_prompt else None)

    with override_encode_prompt(pipe, encode_prompt):
        yield captions
