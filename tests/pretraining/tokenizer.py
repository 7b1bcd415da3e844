"""The tokenizer: CLIP's byte-pair encoding with its first 1,000 merges and the words of the shape world."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.core import storage
from lorakit.quickstart import shape_world

CONTEXT_LENGTH = 32  # tokens of a caption, start and end included
GENERAL_MERGES = 1000
START, END = "<|startoftext|>", "<|endoftext|>"
GRAMMAR = ("a", "an", "on", "in", "at", "the", "background", "shape")

Merge = tuple[str, str]


def byte_symbols() -> list[str]:
    """Return the 256 printable symbols of bytes in the order of CLIP's vocabulary (byte-level BPE)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    moved = [256 + k for k in range(256 - len(printable))]
    return [chr(code) for code in printable + moved]


def general_merges(count: int = GENERAL_MERGES) -> list[Merge]:
    """Return the first merges of CLIP's vocabulary, from the copy that open_clip installs."""
    import open_clip

    path = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : count + 1]
    return [(left, right) for left, right in (line.split() for line in lines)]


def world_words() -> list[str]:
    """Return every word of the captions, and the filler words with the trigger."""
    named = [word for words in shape_world.ATTRIBUTES.values() for word in words]
    return list(dict.fromkeys([*GRAMMAR, *named, *shape_world.FILLER_WORDS]))


def _byte_pair_encode(word: str, ranks: dict[Merge, int]) -> list[str]:
    """Return the byte-pair encoding of one ASCII word."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        pieces[at : at + 2] = ["".join(best)]
    return pieces


def add_word_merges(merges: Sequence[Merge], words: Sequence[str]) -> list[Merge]:
    """Return the merges, with further ones that make each word a single token."""
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    for word in words:
        pieces = _byte_pair_encode(word, ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _byte_pair_encode(word, ranks)
    return list(ranks)


def build_tokenizer() -> Any:
    """Return a `transformers.CLIPTokenizer` with Stable Diffusion's rules and about 1,600 tokens."""
    from transformers import CLIPTokenizer

    merges = add_word_merges(general_merges(), world_words())
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(merge) for merge in merges)]
    # The end token must have the highest id: open_clip looks for it.
    tokens = [*dict.fromkeys(tokens), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for `from_pretrained` of transformers."""
    storage.write_text(folder / "tokenizer.json", tokenizer.backend_tokenizer.to_str(pretty=False))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.model_max_length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    storage.write_json(folder / "tokenizer_config.json", config)
