"""New words of CLIP text encoders: a token in the tokenizer, and its vectors, which are trained (textual
inversion, arXiv:2208.01618; with an adapter, pivotal tuning).

On disk beside the adapter: `<text encoder>.<token embedding>.learned` (vectors, width). For other programs:
one file with the same numbers as A1111, ComfyUI and diffusers name them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lorakit.core.errors import ConfigError

LEARNED_SUFFIX = ".learned"
_SHORT = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # where there are two


class LearnedEmbedding(nn.Module):
    """A token embedding with some more rows, of which only those are trained; `start` is what they were."""

    start: torch.Tensor

    def __init__(self, known: nn.Module, first: int, start: torch.Tensor) -> None:
        super().__init__()
        self.known, self.first, self.strength = known, first, 1.0
        self.learned = nn.Parameter(start.clone().float())  # (vectors, width)
        self.register_buffer("start", start.clone().float(), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) to vectors (B, L, width)."""
        new = ids >= self.first
        vectors: torch.Tensor = self.known(ids.masked_fill(new, 0))
        row = (ids - self.first).clamp(min=0, max=len(self.learned) - 1)
        return torch.where(new[..., None], self.own()[row].to(vectors.dtype), vectors)

    def own(self) -> torch.Tensor:
        """What the word's tokens mean at its strength, (vectors, width)."""
        return (
            self.start + self.strength * (self.learned - self.start) if self.strength != 1 else self.learned
        )


def placeholder_tokens(token: str, vectors: int) -> list[str]:
    """The tokens that stand for a word of several vectors, as diffusers names them."""
    return [token, *(f"{token}_{number}" for number in range(1, vectors))]


def add_token(pipe: Any, encoders: Sequence[str], token: str, vectors: int, init: str) -> None:
    """Teach tokenizers and text encoders a word that means what `init` means, until it is trained.

    Raises ConfigError where the base has the word already, or not the one to begin with.
    """
    from transformers import AddedToken

    names = placeholder_tokens(token, vectors)
    for component in encoders:
        encoder = getattr(pipe, component)
        tokenizer = getattr(pipe, tokenizer_for(component))
        start = _initial_vectors(encoder, tokenizer, init, vectors)
        if token not in tokenizer.get_added_vocab():  # two encoders may share a tokenizer
            tokenizer.add_tokens([AddedToken(name, single_word=True, normalized=True) for name in names])
        ids = tokenizer.convert_tokens_to_ids(names)
        if tokenizer.tokenize(f"a {token} b").count(token) != 1 or ids != list(
            range(ids[0], ids[0] + vectors)
        ):
            raise ConfigError(
                f"the base's tokenizer cannot learn the word {token!r}",
                where="embedding.token",
                remedy="choose a longer word of small letters that it does not know, such as my-dog",
            )
        encoder.set_input_embeddings(
            LearnedEmbedding(encoder.get_input_embeddings(), ids[0], start).to(start.device)
        )
        _restore_eos_lookup(encoder, tokenizer)


def tokenizer_for(encoder: str) -> str:
    """The component whose tokens a text encoder reads."""
    return encoder.replace("text_encoder", "tokenizer")


def _initial_vectors(encoder: Any, tokenizer: Any, init: str, vectors: int) -> torch.Tensor:
    """The vectors (vectors, width) of a known word, repeated where there are more."""
    ids = tokenizer(init, add_special_tokens=False).input_ids
    if not ids or (tokenizer.unk_token_id in ids and tokenizer.unk_token_id != tokenizer.eos_token_id):
        raise ConfigError(f"the base does not know the word {init!r}", where="embedding.init")
    rows: torch.Tensor = encoder.get_input_embeddings().weight.detach()[ids]
    return rows[[number % len(ids) for number in range(vectors)]]


def _restore_eos_lookup(encoder: Any, tokenizer: Any) -> None:
    """Published CLIPs find the end of a text by its largest id, which a new word's would be."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id


def learned_embeddings(*networks: nn.Module) -> Iterator[LearnedEmbedding]:
    """The words that networks were taught."""
    return (m for network in networks for m in list(network.modules()) if isinstance(m, LearnedEmbedding))


def is_embedding_key(key: str) -> bool:
    """Whether a tensor on disk is a word's, not an adapter's."""
    return key.endswith(LEARNED_SUFFIX)


def to_embedding_file(words: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vectors of a word by text encoder as other programs read them: `emb_params`, or one tensor for each
    of two encoders."""
    found = {component: value.float() for component, value in words.items()}
    if len(found) == 1:
        return {"emb_params": next(iter(found.values()))}
    return {_SHORT[component]: value for component, value in found.items()}
