"""Options of captioners."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.core.errors import ConfigError


@dataclass(frozen=True)
class CaptionerOptions:
    """`model` is a folder, a hub id, or the name that a server knows it by; `server` is the server's address.

    `key` names the environment variable that holds the server's key. `tokens` is the longest answer,
    `temperature` 0 the likeliest one, `at_once` the number of questions in one batch (a model here) or on
    their way (a server). `threshold` and `character_threshold` (0..1) are for taggers.
    """

    model: str | None = None
    server: str | None = None
    key: str = "LORAKIT_CAPTION_KEY"
    tokens: int = 300
    temperature: float = 0.0
    at_once: int = 4
    timeout: float = 120.0
    threshold: float = 0.35
    character_threshold: float = 0.85
    device: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any image is opened."""
        if not (self.model or self.server):
            raise ConfigError("no captioner is named", where="model", remedy="give --model or --server")
        for name in ("tokens", "at_once", "timeout"):
            if not getattr(self, name) > 0:  # false for "not a number" too
                raise ConfigError(
                    f"{name} must be above 0, not {getattr(self, name)}", where=name, remedy="use 1"
                )
        for name in ("threshold", "character_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                message = f"{name} {getattr(self, name):g} is not between 0 and 1"
                raise ConfigError(message, where=name, remedy="use 0.35")
        if not 0 <= self.temperature <= 2:
            raise ConfigError(
                f"temperature {self.temperature} is not between 0 and 2",
                where="temperature",
                remedy="use 0.7",
            )
