"""Options of captioners."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.core.errors import ConfigError


@dataclass(frozen=True)
class CaptionerOptions:
    """`model` is a folder, a hub id, or a name on the server; `server` is the server's address.

    `api_key_env` names the environment variable with the server's key. `max_tokens` limits an answer.
    `temperature` 0 gives the most likely answer. `concurrency` is the batch size of a local model (default:
    as many images as its memory takes), or the number of requests in flight to a server (default: 4).
    `timeout` is in seconds for each try. `threshold` and `character_threshold` (0..1) are for taggers.
    """

    model: str | None = None
    server: str | None = None
    api_key_env: str = "LORAKIT_CAPTION_API_KEY"
    max_tokens: int = 300
    temperature: float = 0.0
    concurrency: int | None = None
    timeout: float = 120.0
    threshold: float = 0.35
    character_threshold: float = 0.85
    device: str | None = None

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any image is opened."""
        if not (self.model or self.server):
            raise ConfigError("no captioner is given", where="model", remedy="give --model or --server")
        for name in ("max_tokens", "concurrency", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:  # true for NaN, too
                raise ConfigError(
                    f"{name} must be above 0, not {getattr(self, name)}", where=name, remedy="use 1 or more"
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
