"""Text encoders that are trained themselves: their conditions are computed anew each time, never cached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lorakit import adapters
from lorakit.adapters import textual_inversion
from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError, DataError
from lorakit.models.families.family import Conditioning, Family


class UncachedTextEncoder:
    """Text conditions by the encoders as they are now, with gradients; stands in for a `TextCache`."""

    def __init__(self, family: Family, pipe: Any) -> None:
        self.family, self._pipe = family, pipe

    def get(self, text: str, size: tuple[int, int], pictures: object = None) -> Conditioning:
        """The condition of a caption for a picture of `size` (width, height); CLIP encoders see none."""
        return self.family.encode_live(self._pipe, [text], size)[0]


def trains_text(recipe: Recipe) -> bool:
    """Whether a run changes what captions mean to the base."""
    return recipe.adapter.text_encoder or recipe.embedding is not None


def check_text_training(recipe: Recipe, family: Family, captions: Iterable[str]) -> None:
    """Refuse what the base's text encoders do not allow, and a new word that no caption has."""
    if trains_text(recipe) and not family.text_encoders:
        raise ConfigError(
            f"the text encoders of {family.title} are not trained",
            where="adapter.text_encoder" if recipe.adapter.text_encoder else "embedding",
            remedy="leave it out; Stable Diffusion 1.5, 2 and XL have CLIP encoders that can be",
        )
    word = recipe.embedding.token if recipe.embedding else None
    texts = list(captions)
    if word and texts and not any(word in caption.lower().split() for caption in texts):
        raise DataError(
            f"no caption has the new word {word!r}",
            where="embedding.token",
            remedy="write it into the captions, as a word of its own",
        )


def adaptable_networks(family: Family, pipe: Any) -> dict[str, nn.Module]:
    """What may carry an adapter by component: the denoiser first, then its experts, and text encoders that
    can be trained."""
    parts = [family.component, *family.experts, *family.text_encoders]
    return {name: getattr(pipe, name) for name in parts if getattr(pipe, name, None) is not None}


def inject_adapters(recipe: Recipe, family: Family, pipe: Any) -> dict[str, adapters.AdapterSpec]:
    """Put the recipe's adapters, and its new word, into a loaded pipeline; the shapes by component."""
    if recipe.embedding:
        new = recipe.embedding
        textual_inversion.add_token(pipe, family.text_encoders, new.token, new.vectors, new.init)
    shapes = {}
    for name, network in adaptable_networks(family, pipe).items():
        if name not in family.text_encoders:
            shapes[name] = adapters.denoiser_adapter_spec(network, recipe.adapter, family.targets)
        elif trains_text(recipe):
            shapes[name] = adapters.text_encoder_adapter_spec(
                network, recipe.adapter, family.unread_layers.get(name, 0)
            )
        else:
            continue
        adapters.inject_adapter(network, shape=shapes[name], seed=recipe.train.seed)
    return shapes


def textual_inversion_metadata(recipe: Recipe) -> dict[str, Any]:
    """What a file says about the word that it holds, if any."""
    if recipe.embedding is None:
        return {}
    new = recipe.embedding
    return {"embedding": {"token": new.token, "vectors": new.vectors, "init": new.init}}


def add_saved_token(family: Family, pipe: Any, told: Mapping[str, Any]) -> None:
    """Make the word known that a file's facts tell of, before its tensors are loaded."""
    if "embedding" in told:
        new = told["embedding"]
        textual_inversion.add_token(pipe, family.text_encoders, new["token"], new["vectors"], new["init"])


def lr_multiplier(recipe: Recipe, name: str) -> float:
    """The learning rate of a parameter over optimizer.lr."""
    if textual_inversion.is_embedding_key(name):
        return recipe.embedding.lr / recipe.optimizer.lr if recipe.embedding else 1.0
    rate = recipe.adapter.text_encoder_lr if name.startswith("text_encoder") else None
    return rate / recipe.optimizer.lr if rate else 1.0
