"""Trained text encoders: their text embeddings change with every step, so they are never cached."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lorakit import adapters
from lorakit.adapters import textual_inversion
from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError, DataError
from lorakit.core.nearest import did_you_mean
from lorakit.models.families.family import Conditioning, Family


class UncachedTextEncoder:
    """Text embeddings by the current text encoders, with gradients; used like a `TextCache`."""

    def __init__(self, family: Family, pipe: Any) -> None:
        self.family, self._pipe = family, pipe

    def get(self, text: str, size: tuple[int, int], images: object = None) -> Conditioning:
        """Return the embeddings of a caption for an image of `size` (width, height).

        `images` is ignored: CLIP text encoders see no conditioning images.
        """
        return self.family.encode_text_with_grad(self._pipe, [text], size)[0]


def trains_text(recipe: Recipe) -> bool:
    """Return True if a run changes the text embeddings: it adapts text encoders or trains a new token."""
    return bool(recipe.adapter.text_encoder) or recipe.textual_inversion is not None


def check_text_training(
    recipe: Recipe, family: Family, captions: Iterable[str], components: Collection[str]
) -> None:
    """Raise ConfigError for text encoders that cannot be trained or that the base model does not have,
    DataError if no caption contains the new token.

    `components` are the names of the base model's components.
    """
    if trains_text(recipe) and not family.text.trainable_encoders:
        raise ConfigError(
            f"the text encoders of {family.title} cannot be trained",
            where="adapter.text_encoder" if recipe.adapter.text_encoder else "textual_inversion",
            remedy="leave it out; the CLIP text encoders of Stable Diffusion 1.5, 2 and XL can be trained",
        )
    _check_chosen_encoders(recipe, [n for n in family.text.trainable_encoders if n in components])
    token = recipe.textual_inversion.token if recipe.textual_inversion else None
    texts = list(captions)
    if token and texts and not any(token in caption.lower().split() for caption in texts):
        raise DataError(
            f"no caption contains the new token {token!r}",
            where="textual_inversion.token",
            remedy="write it into the captions as a separate word",
        )


def _check_chosen_encoders(recipe: Recipe, encoders: Sequence[str]) -> None:
    chosen = recipe.adapter.text_encoder
    for name in chosen if isinstance(chosen, list) else ():
        if name not in encoders:
            raise ConfigError(
                f"this base model has no trainable text encoder {name!r}{did_you_mean(name, encoders)}",
                where="adapter.text_encoder",
                remedy=f"choose from {', '.join(encoders)}; `true` adapts all",
            )


def adaptable_networks(family: Family, pipe: Any) -> dict[str, nn.Module]:
    """Return the networks that can have an adapter, by component.

    The denoiser comes first, then the other experts, then text encoders that can be trained.
    """
    parts = [family.components.denoiser, *family.components.experts, *family.text.trainable_encoders]
    return {name: getattr(pipe, name) for name in parts if getattr(pipe, name, None) is not None}


def inject_adapters(recipe: Recipe, family: Family, pipe: Any) -> dict[str, adapters.AdapterSpec]:
    """Inject the recipe's adapters, and its new token, into a loaded pipeline; return specs by component."""
    if settings := recipe.textual_inversion:
        textual_inversion.add_token(
            pipe,
            family.text.trainable_encoders,
            settings.token,
            settings.num_vectors,
            settings.initializer_token,
        )
    networks = adaptable_networks(family, pipe)
    specs = adapter_specs(recipe, family, networks)
    for name, spec in specs.items():
        adapters.inject_adapter(networks[name], spec=spec, seed=recipe.train.seed)
    return specs


def adapter_specs(
    recipe: Recipe,
    family: Family,
    networks: Mapping[str, nn.Module],
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, adapters.AdapterSpec]:
    """Return the recipe's adapter of each network that gets one; `log` gets the modules of each entry.

    The weights of the networks are not read: they may be on the meta device.
    """
    denoisers = [name for name in networks if name not in family.text.trainable_encoders]
    specs = {}
    for name, network in networks.items():
        if name in denoisers:
            specs[name] = adapters.denoiser_adapter_spec(
                network,
                recipe.adapter,
                family.target_modules,
                component=name,
                siblings=[other for other in denoisers if other != name],
                log=log,
            )
        elif recipe.textual_inversion or recipe.adapter.adapts_text_encoder(name):
            specs[name] = adapters.text_encoder_adapter_spec(
                network, name, recipe.adapter, family.text.skipped_layers.get(name, 0)
            )
    return specs


def textual_inversion_metadata(recipe: Recipe) -> dict[str, Any]:
    """Return the file metadata of the recipe's new token; empty without one."""
    settings = recipe.textual_inversion
    if settings is None:
        return {}
    entries = {"token": settings.token, "num_vectors": settings.num_vectors}
    return {"textual_inversion": entries | {"initializer_token": settings.initializer_token}}


def add_saved_token(family: Family, pipe: Any, metadata: Mapping[str, Any]) -> None:
    """Add the new token that a file's metadata describes, if any; to do before its tensors are loaded."""
    if entries := metadata.get("textual_inversion"):
        textual_inversion.add_token(
            pipe,
            family.text.trainable_encoders,
            entries["token"],
            entries["num_vectors"],
            entries["initializer_token"],
        )


def lr_multiplier(recipe: Recipe, name: str) -> float:
    """Return the learning rate of a parameter divided by optimizer.lr."""
    if textual_inversion.is_embedding_key(name):
        return recipe.textual_inversion.lr / recipe.optimizer.lr if recipe.textual_inversion else 1.0
    text_encoder_lr = recipe.adapter.text_encoder_lr if name.startswith("text_encoder") else None
    return text_encoder_lr / recipe.optimizer.lr if text_encoder_lr else 1.0


def lr_name(name: str) -> str:
    """Return the name under which the learning rate of a parameter is logged."""
    if textual_inversion.is_embedding_key(name):
        return "lr_embedding"
    return "lr_text_encoder" if name.startswith("text_encoder") else "lr"
