"""Models that score, loaded when they are used and released afterwards: one at a time is in memory.

Each is loaded once before any image is sampled, so that a missing one is an error at once, and released; what
describes it is kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar, cast

from lorakit.evaluation.feature_cache import TEXT_LISTS
from lorakit.models import device as devices
from lorakit.models import memory

T = TypeVar("T")
_KEPT = ("name", "max_parts")  # attributes that are read without loading the model


class _OnDemand:
    """A model in the place of the loaded one: any attribute but its description and `_KEPT` loads it."""

    def __init__(self, load: Callable[[], Any], loaded: Any = None) -> None:
        self._load = load
        self._model: Any = loaded
        self._description: dict[str, Any] = {}
        # texts that were treated in another way, since a model that is loaded again has forgotten them
        self._texts: dict[str, dict[str, None]] = {}
        model = self._loaded()
        self._type = type(model)
        for name in _KEPT:
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        self.release()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The class of the model, for `isinstance`."""
        return self._type

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self._load()
        return self._model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copy and pickle, which must not load it
            raise AttributeError(name)
        return getattr(self._loaded(), name)

    def describe(self) -> dict[str, Any]:
        if self._model is not None:
            self._description = dict(self._model.describe())
            for key in TEXT_LISTS & self._description.keys():
                self._texts.setdefault(key, {}).update(dict.fromkeys(self._description[key]))
        return self._description | {key: list(texts) for key, texts in self._texts.items()}

    def release(self) -> None:
        if self._model is not None:
            self.describe()
            self._model = None
            gc.collect()
            memory.empty_device_cache(devices.default_device())


def on_demand(load: Callable[[], T], loaded: T | None = None) -> T:
    """Load a model to see that it can be loaded, and return one that is loaded again when it is used.

    `loaded` is the model if it was loaded before.
    """
    return cast(T, _OnDemand(load, loaded))


def release(*models: Any) -> None:
    """Free the memory of models that are loaded again when they are used."""
    for model in models:
        if type(model) is _OnDemand:
            model.release()
