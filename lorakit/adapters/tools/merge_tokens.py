"""Merge new tokens that were trained with adapters into a copy of a base model: tokens and vectors."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.adapters import text_encoders, textual_inversion
from lorakit.adapters.tools.weighted import WeightedAdapter
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import families

_TOKEN_EMBEDDING_KEY = "token_embedding.weight"


@dataclass(frozen=True)
class _NewVectors:
    """The vectors (N, width) that a text encoder gets, and the token id of the first."""

    first_token_id: int
    vectors: torch.Tensor


class EmbeddingMerger:
    """Tokenizers and text encoders of a base model with the new tokens of adapters, if they have any."""

    def __init__(self, base: Path, adapters: Sequence[WeightedAdapter]) -> None:
        """Raises ConfigError if the base model cannot add a token, or if two adapters have the same one."""
        self._new_vectors: dict[str, _NewVectors] = {}  # by text encoder
        with_embeddings = [weighted for weighted in adapters if weighted.adapter.embeddings]
        if not with_embeddings:
            return
        first_metadata = with_embeddings[0].adapter.lorakit_metadata
        family = families.family_for_adapter(base, first_metadata["family"])
        tokenizers = {textual_inversion.tokenizer_for(name) for name in family.text.trainable_encoders}
        self._pipe = family.load(
            base, dtype=torch.float32, only={*family.text.trainable_encoders, *tokenizers}
        )
        tokens: set[str] = set()
        for weighted in with_embeddings:
            adapter = weighted.adapter
            if adapter.token in tokens:
                raise ConfigError(
                    f"two adapters have the new token {adapter.token!r}", remedy="merge only one of them"
                )
            tokens.add(str(adapter.token))
            text_encoders.add_saved_token(family, self._pipe, adapter.lorakit_metadata)
            for name in family.text.trainable_encoders:
                self._add_to_table(name, adapter.embeddings[name], weighted.strength)

    def _add_to_table(self, name: str, learned: torch.Tensor, strength: float) -> None:
        """Move an added token into the text encoder's own table, so that the next token can follow it."""
        encoder: Any = getattr(self._pipe, name)
        embedding: Any = encoder.get_input_embeddings()  # a LearnedEmbedding
        embedding.learned.data.copy_(learned)
        embedding.strength = strength
        first, vectors = embedding.first_token_id, embedding.scaled_vectors().detach()
        base_table = embedding.base_embedding.weight.detach()
        table = base_table.new_zeros(max(len(base_table), first + len(vectors)), base_table.shape[1])
        table[: len(base_table)] = base_table
        table[first : first + len(vectors)] = vectors
        encoder.set_input_embeddings(nn.Embedding.from_pretrained(table))
        start = self._new_vectors[name].first_token_id if name in self._new_vectors else first
        self._new_vectors[name] = _NewVectors(start, table[start : first + len(vectors)])

    def write(self, out: Path) -> None:
        """Write the tokens into a merged folder, which has the tokenizers and text encoders of the base."""
        for name, new in self._new_vectors.items():
            tokenizer = getattr(self._pipe, textual_inversion.tokenizer_for(name))
            with tempfile.TemporaryDirectory(prefix="lorakit-") as folder:
                tokenizer.save_pretrained(folder)
                for file in sorted(Path(folder).iterdir()):
                    storage.copy_file(file, out / textual_inversion.tokenizer_for(name) / file.name)
            sizes = [_extend_token_table(file, new) for file in sorted((out / name).glob("*.safetensors"))]
            # Without eos_token_id CLIP takes the largest id as the end token, which is now a new token.
            changed = {"vocab_size": max(sizes), "eos_token_id": tokenizer.eos_token_id}
            config = out / name / "config.json"
            storage.write_json(config, storage.read_json(config, allow_infinity=True) | changed)


def _extend_token_table(file: Path, new: _NewVectors) -> int:
    """Write new vectors into the token table of a file; return its number of rows, 0 if it is not there."""
    tensors = storage.read_safetensors(file)
    key = next((key for key in tensors if key.endswith(_TOKEN_EMBEDDING_KEY)), None)
    if key is None:
        return 0
    table, stop = tensors[key], new.first_token_id + len(new.vectors)
    extended = table.new_zeros(max(len(table), stop), table.shape[1])
    extended[: len(table)] = table
    extended[new.first_token_id : stop] = new.vectors.to(table.dtype)
    storage.write_safetensors(file, tensors | {key: extended}, storage.read_safetensors_metadata(file))
    return len(extended)
