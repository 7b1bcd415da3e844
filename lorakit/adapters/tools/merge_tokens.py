"""New words that were trained with adapters, written into a copy of a base: tokens and their vectors."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.adapters import textual_inversion
from lorakit.adapters.formats import LoadedAdapter
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import families

_TOKEN_EMBEDDING_KEY = "token_embedding.weight"


class EmbeddingMerger:
    """What tokenizers and text encoders of a base become with the adapters' words, if they bring any."""

    def __init__(self, base: Path, adapters: Sequence[tuple[LoadedAdapter, float]]) -> None:
        """Raises ConfigError where the base cannot learn a word, or two adapters bring the same one."""
        self._tables: dict[str, tuple[int, torch.Tensor]] = {}  # text encoder: first new id, vectors
        bringing = [(adapter, strength) for adapter, strength in adapters if adapter.words]
        if not bringing:
            return
        family = families.family_for_adapter(base, bringing[0][0].facts["family"])
        tokenizers = {textual_inversion.tokenizer_for(name) for name in family.text_encoders}
        self._pipe = family.load(base, dtype=torch.float32, only={*family.text_encoders, *tokenizers})
        known: set[str] = set()
        for adapter, strength in bringing:
            new = adapter.facts["embedding"]
            if new["token"] in known:
                raise ConfigError(
                    f"two adapters bring the word {new['token']!r}", remedy="merge one of them only"
                )
            known.add(new["token"])
            textual_inversion.add_token(
                self._pipe, family.text_encoders, new["token"], new["vectors"], new["init"]
            )
            for name in family.text_encoders:
                self._learn(name, adapter.words[name], strength)

    def _learn(self, name: str, learned: torch.Tensor, strength: float) -> None:
        """Make a word that was installed a part of the encoder's own table, for the next one to follow."""
        encoder: Any = getattr(self._pipe, name)
        word: Any = encoder.get_input_embeddings()  # a NewWord
        word.learned.data.copy_(learned)
        word.strength = strength
        own, old = word.own().detach(), word.known.weight.detach()
        table = old.new_zeros(max(len(old), word.first + len(own)), old.shape[1])
        table[: len(old)] = old
        table[word.first : word.first + len(own)] = own
        encoder.set_input_embeddings(nn.Embedding.from_pretrained(table))
        first, _ = self._tables.get(name, (word.first, own))
        self._tables[name] = first, table[first : word.first + len(own)]

    def write(self, out: Path) -> None:
        """Put the words into the merged folder, which has the base's tokenizers and text encoders."""
        for name, (first, vectors) in self._tables.items():
            tokenizer = getattr(self._pipe, textual_inversion.tokenizer_for(name))
            with tempfile.TemporaryDirectory(prefix="lorakit-") as folder:
                tokenizer.save_pretrained(folder)
                for file in sorted(Path(folder).iterdir()):
                    storage.copy_file(file, out / textual_inversion.tokenizer_for(name) / file.name)
            sizes = [
                _extend_token_table(file, first, vectors)
                for file in sorted((out / name).glob("*.safetensors"))
            ]
            # With an end that is not named, CLIP takes the largest id for it, which would be the word's.
            changed = {"vocab_size": max(sizes), "eos_token_id": tokenizer.eos_token_id}
            config = out / name / "config.json"
            storage.write_json(config, storage.read_json(config) | changed)


def _extend_token_table(file: Path, first: int, vectors: torch.Tensor) -> int:
    """Put vectors (N, width) into the table of tokens, where this file has it, from id `first` on; its
    length then, else 0."""
    tensors = storage.read_safetensors(file)
    key = next((key for key in tensors if key.endswith(_TOKEN_EMBEDDING_KEY)), None)
    if key is None:
        return 0
    table = tensors[key]
    grown = table.new_zeros(max(len(table), first + len(vectors)), table.shape[1])
    grown[: len(table)] = table
    grown[first : first + len(vectors)] = vectors.to(table.dtype)
    storage.write_safetensors(file, tensors | {key: grown}, storage.read_safetensors_metadata(file))
    return len(grown)
