"""Textual inversion (arXiv:2208.01618): a new token of CLIP tokenizers, and its trained vectors.

With an adapter this is pivotal tuning. In an adapter file: `<text encoder>.<token embedding>.learned`
(num_vectors, width). For other programs: one file with the names that A1111, ComfyUI and diffusers read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lorakit.core.errors import ConfigError

LEARNED_SUFFIX = ".learned"
_KEYS_OF_TWO_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class LearnedEmbedding(nn.Module):
    """A token embedding with additional rows, of which only those are trained.

    `initial` holds the vectors that training started from, (num_vectors, width).
    """

    initial: torch.Tensor

    def __init__(self, base_embedding: nn.Module, first_token_id: int, initial: torch.Tensor) -> None:
        super().__init__()
        self.base_embedding, self.first_token_id, self.strength = base_embedding, first_token_id, 1.0
        self.learned = nn.Parameter(initial.clone().float())  # (num_vectors, width)
        self.register_buffer("initial", initial.clone().float(), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors (B, L, width) of token ids (B, L)."""
        is_new = ids >= self.first_token_id
        vectors: torch.Tensor = self.base_embedding(ids.masked_fill(is_new, 0))
        row = (ids - self.first_token_id).clamp(min=0, max=len(self.learned) - 1)
        return torch.where(is_new[..., None], self.scaled_vectors()[row].to(vectors.dtype), vectors)

    def scaled_vectors(self) -> torch.Tensor:
        """Return the new token's vectors at the current strength, (num_vectors, width)."""
        if self.strength == 1:
            return self.learned
        return self.initial + self.strength * (self.learned - self.initial)


def placeholder_tokens(token: str, num_vectors: int) -> list[str]:
    """Return the tokens of a new token with several vectors, named as in diffusers."""
    return [token, *(f"{token}_{number}" for number in range(1, num_vectors))]


def add_token(
    pipe: Any, encoders: Sequence[str], token: str, num_vectors: int, initializer_token: str
) -> None:
    """Add a token to tokenizers and text encoders, with the vectors of `initializer_token`.

    Raises ConfigError if the base model knows the token already, or does not know the initializer token.
    """
    from transformers import AddedToken

    names = placeholder_tokens(token, num_vectors)
    for component in encoders:
        encoder = getattr(pipe, component)
        tokenizer = getattr(pipe, tokenizer_for(component))
        initial = _initial_vectors(encoder, tokenizer, initializer_token, num_vectors)
        if token not in tokenizer.get_added_vocab():  # two encoders may share a tokenizer
            tokenizer.add_tokens([AddedToken(name, single_word=True, normalized=True) for name in names])
        ids = tokenizer.convert_tokens_to_ids(names)
        is_one_token = tokenizer.tokenize(f"a {token} b").count(token) == 1
        if not is_one_token or ids != list(range(ids[0], ids[0] + num_vectors)):
            raise ConfigError(
                f"the base model's tokenizer cannot add the token {token!r}",
                where="textual_inversion.token",
                remedy="choose a longer word of lowercase letters that it does not know, such as my-dog",
            )
        encoder.set_input_embeddings(
            LearnedEmbedding(encoder.get_input_embeddings(), ids[0], initial).to(initial.device)
        )
        _restore_eos_lookup(encoder, tokenizer)


def tokenizer_for(encoder: str) -> str:
    """Return the name of the tokenizer component that belongs to a text encoder component."""
    return encoder.replace("text_encoder", "tokenizer")


def _initial_vectors(encoder: Any, tokenizer: Any, initializer_token: str, num_vectors: int) -> torch.Tensor:
    """Return the vectors (num_vectors, width) of a known token, repeated if it has fewer."""
    ids = tokenizer(initializer_token, add_special_tokens=False).input_ids
    if not ids or (tokenizer.unk_token_id in ids and tokenizer.unk_token_id != tokenizer.eos_token_id):
        raise ConfigError(
            f"the base model does not know the token {initializer_token!r}",
            where="textual_inversion.initializer_token",
            remedy="choose a common word, such as dog",
        )
    rows: torch.Tensor = encoder.get_input_embeddings().weight.detach()[ids]
    return rows[[number % len(ids) for number in range(num_vectors)]]


def _restore_eos_lookup(encoder: Any, tokenizer: Any) -> None:
    """Set the end token's id; older CLIP configurations take the largest id, which is now a new token."""
    for module in encoder.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = tokenizer.eos_token_id


def learned_embeddings(*networks: nn.Module) -> Iterator[LearnedEmbedding]:
    """Yield the embeddings of new tokens in networks."""
    return (m for network in networks for m in list(network.modules()) if isinstance(m, LearnedEmbedding))


def is_embedding_key(key: str) -> bool:
    """Return True if a tensor in an adapter file holds the vectors of a new token."""
    return key.endswith(LEARNED_SUFFIX)


def to_embedding_file(vectors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the vectors of a new token, given by text encoder, with the keys that other programs read.

    One text encoder: `emb_params`. Two: `clip_l` and `clip_g`.
    """
    tensors = {component: tensor.float() for component, tensor in vectors.items()}
    if len(tensors) == 1:
        return {"emb_params": next(iter(tensors.values()))}
    return {_KEYS_OF_TWO_ENCODERS[component]: tensor for component, tensor in tensors.items()}
